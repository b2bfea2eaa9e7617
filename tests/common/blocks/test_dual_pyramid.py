# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.dual_pyramid import Encoder, FlowBlock, ResidualBlock
from common.blocks.remade import Remade

SIZES = [(9, 6), (5, 6, 7)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def textbook(block: ResidualBlock, x: Tensor) -> Tensor:
    """The same of torch's own parts."""

    def normed(y: Tensor, norm: nn.Module) -> Tensor:
        assert isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor)
        return F.instance_norm(y, weight=norm.weight, bias=norm.bias)

    hidden = F.leaky_relu(normed(block.first(x), block.first_norm), 0.2)
    main = normed(block.second(hidden), block.second_norm)
    return F.leaky_relu(main + normed(block.skip(x), block.skip_norm), 0.2)


def shaken(module: nn.Module) -> nn.Module:
    """With scales and shifts of the normalisations that are not those of a fresh module."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_residual_block_is_that_of_torch_with_its_gradients(size: tuple[int, ...], stride: int) -> None:
    block = ResidualBlock(len(size), 3, 4, stride).double()
    shaken(block)
    x = normal(2, 3, *size).requires_grad_()
    inputs = [x, *block.parameters()]
    found, expected = block(x), textbook(block, x)
    assert found.shape == (2, 4, *(-(-n // stride) for n in size))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((y * normal(*y.shape)).sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_both_orders_of_what_is_fed_are_those_one_after_the_other(size: tuple[int, ...]) -> None:
    block = FlowBlock(len(size), 6, 4).double()
    shaken(block)
    one, other = (normal(2, 3, *size, k)[..., 0].requires_grad_() for k in (1, 2))
    inputs = [one, other, *block.parameters()]
    first, second = (Remade(x, x.detach) for x in (one, other))
    found = block.of_exchanged(first, second)
    expected = tuple(block(torch.cat(order, dim=1)) for order in ([one, other], [other, one]))
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad((y * normal(*y.shape)).sum(), inputs) for y in (torch.stack(found), torch.stack(expected))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
    for there, back in zip(found, reversed(block.of_exchanged(second, first)), strict=True):
        assert torch.equal(there, back)


def test_flow_block_of_which_all_but_one_normalisation_is_frozen_has_its_gradient() -> None:
    block = FlowBlock(2, 3, 4).double()
    shaken(block)
    assert isinstance(block.residual, ResidualBlock)
    block.requires_grad_(False)
    trained = [
        *block.residual.skip_norm.requires_grad_(True).parameters(),
        *block.flow.requires_grad_(True).parameters(),
    ]
    x, weights = normal(2, 3, 5, 6), normal(2, 2, 5, 6)
    forms = (block(x), block.flow(textbook(block.residual, x)))
    gradients = [torch.autograd.grad((flow * weights).sum(), trained) for flow in forms]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_each_level_is_made_of_the_one_before_at_half_its_size(size: tuple[int, ...]) -> None:
    encoder = Encoder(len(size), (2, 3, 4)).double()
    shaken(encoder)
    image = normal(1, 1, *size)
    features = encoder(image)
    expected = encoder.projection(image)
    for level, (found, block) in enumerate(zip(features, encoder.blocks, strict=True)):
        assert isinstance(block, ResidualBlock)
        expected = textbook(block, expected)
        torch.testing.assert_close(found, expected)
        assert found.shape == (1, level + 2, *(-(-n // 2**level) for n in size))


@pytest.mark.parametrize("size", SIZES)
def test_flow_is_a_convolution_of_the_residual_block(size: tuple[int, ...]) -> None:
    block = FlowBlock(len(size), 3, 4).double()
    shaken(block)
    x = normal(2, 3, *size)
    assert isinstance(block.residual, ResidualBlock)
    torch.testing.assert_close(block(x), block.flow(textbook(block.residual, x)))
    assert block(x).abs().max() > 0.1


def test_flow_of_bfloat16_is_float32() -> None:
    block = FlowBlock(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(torch.rand(1, 3, 8, 8)).dtype == torch.float32

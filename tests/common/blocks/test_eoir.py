# SPDX-License-Identifier: Apache-2.0
"""EOIR's blocks against the same layers written one after the other with torch's functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.eoir import Encoder, FlowEstimator, LargeKernelBlock, PlainBlock, block

Weights = Mapping[str, Tensor]
SHAPES = {2: (7, 6), 3: (5, 6, 4)}


def randomised(module: nn.Module) -> nn.Module:
    """In float64, with biases and slopes that are nothing special."""
    generator = torch.Generator().manual_seed(0)
    module.double()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def features(channels: int, dims: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((2, channels, *SHAPES[dims]), generator=generator, dtype=torch.float64)


def convolve(x: Tensor, weights: Weights, name: str) -> Tensor:
    kernel = weights[f"{name}.weight"]
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, kernel, weights[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def normalised(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()


def textbook_block(x: Tensor, weights: Weights, prefix: str = "") -> Tensor:
    """Convolution(s), instance normalisation, identity where the number of channels stays, PReLU."""
    names = [name for name in ("conv", "regular", "large", "point") if f"{prefix}{name}.weight" in weights]
    total = sum(normalised(convolve(x, weights, prefix + name)) for name in names)
    if len(names) > 1 and weights[f"{prefix}regular.weight"].shape[0] == x.shape[1]:
        total = total + x
    return F.prelu(torch.as_tensor(total), weights[f"{prefix}activation.weight"])


def textbook_estimator(pair: Tensor, weights: Weights) -> Tensor:
    fixed, moving = pair.chunk(2, dim=1)
    x = torch.cat([fixed + moving, fixed - moving], dim=1)
    x = F.relu(convolve(x, weights, "mix")) if "mix.weight" in weights else textbook_block(x, weights, "mix.")
    return convolve(F.relu(convolve(x, weights, "reduce")), weights, "flow")


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize(("channels", "out_channels"), [(2, 4), (3, 3)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_block_equals_its_layers_one_after_the_other(
    dims: int, kernel_size: int, channels: int, out_channels: int, channels_last: bool
) -> None:
    module = randomised(block(dims, channels, out_channels, kernel_size))
    if channels_last:
        for parameter in module.parameters():
            if parameter.ndim > 1:
                layout = torch.channels_last if dims == 2 else torch.channels_last_3d
                parameter.data = parameter.data.contiguous(memory_format=layout)
    x = features(channels, dims).requires_grad_()
    weights = dict(module.named_parameters())
    expected, out = textbook_block(x, weights), module(x)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    target = features(out_channels, dims, seed=3)
    inputs = [x, *weights.values()]
    gradients = (torch.autograd.grad(y, inputs, target) for y in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def test_kernel_three_is_a_plain_block_and_more_a_large_one() -> None:
    assert isinstance(block(3, 2, 4, 3), PlainBlock)
    assert isinstance(block(3, 2, 4, 5), LargeKernelBlock)


@pytest.mark.parametrize("kernel_size", [1, 2, 4, -3])
def test_even_or_tiny_kernel_is_refused(kernel_size: int) -> None:
    with pytest.raises(ValueError, match=f"kernel_size is {kernel_size}; expected an odd number from 3 on"):
        block(3, 2, 4, kernel_size)


def textbook_encoder(x: Tensor, weights: Weights) -> Tensor:
    for index in range(1 + max(int(name[0]) for name in weights)):
        x = textbook_block(x, weights, f"{index}.")
    return x


def encoder(dims: int, middle: int | None) -> Encoder:
    between = [] if middle is None else [block(dims, 4, 4, middle)]
    return Encoder(PlainBlock(dims, 1, 3), PlainBlock(dims, 3, 4), *between, PlainBlock(dims, 4, 2))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("middle", [None, 3, 5])
def test_encoder_equals_its_blocks_one_after_the_other(dims: int, middle: int | None) -> None:
    module = randomised(encoder(dims, middle))
    weights = dict(module.named_parameters())
    x = features(1, dims).requires_grad_()
    out, expected = module(x), textbook_encoder(x, weights)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    inputs = [x, *weights.values()]
    gradients = (torch.autograd.grad(y, inputs, features(2, dims, seed=4)) for y in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel_size", [None, 3, 5])
@pytest.mark.parametrize("search_radius", [1, 2])
def test_estimator_equals_its_layers_on_sum_and_difference(
    dims: int, kernel_size: int | None, search_radius: int
) -> None:
    module = randomised(FlowEstimator(dims, 3, search_radius, kernel_size))
    weights = dict(module.named_parameters())
    assert weights["flow.weight"].shape[:2] == (dims, (2 * search_radius + 1) ** 3)
    pair = features(6, dims).requires_grad_()
    out, expected = module(pair), textbook_estimator(pair, weights)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-11)
    inputs = [pair, *weights.values()]
    gradients = (torch.autograd.grad(y, inputs, features(dims, dims, seed=4)) for y in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-10)


def assert_same_gradients(
    module: nn.Module, textbook: Callable[[Tensor, Weights], Tensor], x: Tensor, frozen: Callable[[str], bool]
) -> None:
    named: dict[str, Tensor] = {"input": x.requires_grad_(), **dict(module.named_parameters())}
    for name, tensor in named.items():
        tensor.requires_grad_(not frozen(name))
    results = []
    for out in (module(x), textbook(x, dict(module.named_parameters()))):
        out.pow(3).sum().backward()
        results.append({name: tensor.grad for name, tensor in named.items()})
        for name, tensor in named.items():
            assert (tensor.grad is None) == frozen(name)
            tensor.grad = None
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kernel_size", [None, 5])
@pytest.mark.parametrize("frozen", ["weight", "bias", "mix", "reduce", "flow", "input"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_right_one(kernel_size: int | None, frozen: str) -> None:
    module = randomised(FlowEstimator(3, 3, kernel_size=kernel_size))
    assert_same_gradients(module, textbook_estimator, features(6, 3), lambda name: frozen in name)


@pytest.mark.parametrize("middle", [None, 5])
@pytest.mark.parametrize("trained", ["weight", "bias", "activation", "[12]", "0.conv.bias"])
def test_frozen_parts_of_the_encoder_get_no_gradient_either(middle: int | None, trained: str) -> None:
    module = randomised(encoder(3, middle))
    assert_same_gradients(module, textbook_encoder, features(1, 3), lambda name: not re.search(trained, name))


@pytest.mark.parametrize("kernel_size", [None, 3, 5])
def test_value_without_gradient_is_the_value_with(kernel_size: int | None) -> None:
    module, pair = randomised(FlowEstimator(3, 3, kernel_size=kernel_size)), features(6, 3)
    with torch.no_grad():
        without = module(pair)
    torch.testing.assert_close(without, module(pair), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: FlowEstimator(3, 3), lambda: FlowEstimator(3, 3, 1, 5), lambda: block(3, 6, 6, 5)]
)
def test_inputs_are_left_as_they_were(make: Callable[[], nn.Module], grad: bool) -> None:
    module, pair = randomised(make()), features(6, 3)
    before = pair.clone()
    with torch.set_grad_enabled(grad):
        module(pair)
    assert torch.equal(pair, before)


@pytest.mark.parametrize("kernel_size", [None, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_velocity_is_float32_under_autocast(kernel_size: int | None, dtype: torch.dtype) -> None:
    module = FlowEstimator(3, 3, kernel_size=kernel_size)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        velocity = module(features(6, 3).to(dtype))
    assert velocity.dtype == torch.float32
    velocity.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())

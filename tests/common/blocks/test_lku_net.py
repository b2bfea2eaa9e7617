# SPDX-License-Identifier: Apache-2.0
"""LKU-Net's blocks against the same layers written one after the other with torch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.lku_net import ActivatedConvolution, FoldedKernelBlock, WayUp

SHAPES = {2: (8, 6), 3: (4, 6, 8)}


def made(module: nn.Module) -> dict[str, Tensor]:
    """In float64, with slopes that are nothing special; its parameters by name."""
    module.double()
    for name, parameter in module.named_parameters():
        if "activation" in name:
            parameter.data.fill_(0.1)
    return dict(module.named_parameters())


def features(dims: int, channels: int, seed: int = 1, halved: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = [n // 2 if halved else n for n in SHAPES[dims]]
    return torch.randn((2, channels, *shape), generator=generator, dtype=torch.float64).requires_grad_()


def convolved(x: Tensor, weights: dict[str, Tensor], name: str, stride: int = 1) -> Tensor:
    kernel = weights[f"{name}.weight"]
    function = F.conv2d if x.ndim == 4 else F.conv3d
    return function(x, kernel, weights[f"{name}.bias"], stride=stride, padding=kernel.shape[-1] // 2)


def assert_equal(module: nn.Module, expected: Tensor, out: Tensor, *inputs: Tensor) -> None:
    # float64, up to 7^3 products of 3 channels in another order: 8e-15 for values up to 5, 2e-14 for gradients.
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = [*inputs, *module.parameters()]
    gradients = (torch.autograd.grad(y, wanted, target) for y in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)  # as above


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kernel_size", [5, 7])
def test_one_convolution_is_the_sum_of_three_and_the_input(dims: int, kernel_size: int) -> None:
    module = FoldedKernelBlock(dims, 3, kernel_size)
    weights, x = made(module), features(dims, 3)
    branches = [convolved(x, weights, name) for name in ("regular", "large", "point")]
    expected = F.prelu(branches[0] + branches[1] + branches[2] + x, weights["activation.weight"])
    assert_equal(module, expected, module(x), x)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_activated_convolution_equals_its_layers(dims: int, stride: int) -> None:
    module = ActivatedConvolution(dims, 2, 3, stride)
    weights, x = made(module), features(dims, 2)
    assert_equal(module, F.prelu(convolved(x, weights, "conv", stride), weights["activation.weight"]), module(x), x)


@pytest.mark.parametrize("dims", [2, 3])
def test_way_up_equals_its_layers(dims: int) -> None:
    module = WayUp(dims, 4, 2, 5, 3)
    weights, x, skip = made(module), features(dims, 4, halved=True), features(dims, 2, seed=2)
    transposed = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
    y = F.prelu(
        transposed(x, weights["enlarge.weight"], weights["enlarge.bias"], stride=2), weights["activation.weight"]
    )
    y = torch.cat([y, skip], dim=1)
    for part in ("first", "second"):
        y = F.prelu(convolved(y, weights, f"{part}.conv"), weights[f"{part}.activation.weight"])
    assert_equal(module, y, module(x, skip), x, skip)

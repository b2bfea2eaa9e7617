# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.doubled_convolution import convolve_doubled


def _inputs(dims: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    size = (2, 3, 4)[:dims]
    below, across = torch.randn(2, 3, *size), torch.randn(2, 2, *(2 * n for n in size))
    values = (below, across, torch.randn(4, 5, *[3] * dims), torch.randn(4))
    return tuple(value.to(dtype).requires_grad_() for value in values)


def _plain(below: Tensor, across: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    joined = torch.cat([F.interpolate(below, scale_factor=2, mode="nearest"), across], dim=1)
    return (F.conv2d if below.ndim == 4 else F.conv3d)(joined, weight, bias, padding=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_the_convolution_of_both_joined(dims: int) -> None:
    inputs = _inputs(dims)
    torch.testing.assert_close(convolve_doubled(*inputs), _plain(*inputs))


@pytest.mark.parametrize("dims", [2, 3])
def test_so_are_its_gradients(dims: int) -> None:
    inputs = _inputs(dims)
    given = torch.randn_like(_plain(*inputs))
    ours, plain = (torch.autograd.grad((form(*inputs) * given).sum(), inputs) for form in (convolve_doubled, _plain))
    torch.testing.assert_close(ours, plain)


def test_the_type_is_that_of_autocast() -> None:
    inputs = _inputs(3, torch.float32)
    exact = _plain(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = convolve_doubled(*inputs)
    assert result.dtype == torch.bfloat16
    # Inputs and summands are rounded to eight bits: 2^-9 each, of values up to about 20 in 45 products.
    torch.testing.assert_close(result.float(), exact, rtol=0.02, atol=0.1)

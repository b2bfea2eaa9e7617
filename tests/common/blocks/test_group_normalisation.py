# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.group_normalisation import group_norm_relu, group_norm_relu_and_convolve

SIZES = [(5, 6), (3, 4, 5)]


def inputs(size: tuple[int, ...], channels: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, channels, *size), (channels,), (channels,)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).add_(0.5).requires_grad_() for s in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_values_are_those_of_torch(size: tuple[int, ...], groups: int) -> None:
    x, weight, bias = inputs(size)
    torch.testing.assert_close(group_norm_relu(x, groups, weight, bias), F.relu(F.group_norm(x, groups, weight, bias)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [1, 3])
def test_gradients_are_exact(size: tuple[int, ...], groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.blocks.group_normalisation.PIECE", 50)
    assert torch.autograd.gradcheck(lambda x, w, b: group_norm_relu(x, groups, w, b), inputs(size))


@pytest.mark.parametrize("size", SIZES)
def test_with_a_convolution_values_and_gradients_are_those_of_both(
    size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.blocks.group_normalisation.PIECE", 50)
    x, weight, bias = inputs(size)
    kernel, kernel_bias = inputs((3,) * len(size))[0].detach().requires_grad_(), inputs(size, 2)[1]
    convolve = F.conv2d if len(size) == 2 else F.conv3d

    def both(*tensors: Tensor) -> Tensor:
        x, weight, bias, kernel, kernel_bias = tensors
        return convolve(group_norm_relu(x, 3, weight, bias), kernel, kernel_bias, padding=1)

    tensors = [x, weight, bias, kernel, kernel_bias]
    found, expected = group_norm_relu_and_convolve(x, 3, *tensors[1:]), both(*tensors)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), tensors) for y in (found, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(group_norm_relu_and_convolve(x.clone(), 3, *tensors[1:]), expected)


def test_channels_last_and_far_from_zero_it_is_still_exact() -> None:
    x, weight, bias = inputs((40, 30, 50), 12)
    exact = F.relu(F.group_norm(x + 100, 4, weight, bias))
    x, weight, bias = (t.detach().float() for t in (x + 100, weight, bias))
    found = group_norm_relu(x.contiguous(memory_format=torch.channels_last_3d), 4, weight, bias)
    assert found.is_contiguous(memory_format=torch.channels_last_3d)
    # 100 in float32 is exact to 4e-6.
    torch.testing.assert_close(found.double(), exact.detach(), rtol=0, atol=5e-5)


def test_bfloat16_keeps_its_type_and_statistics_are_finer() -> None:
    x, weight, bias = (t.detach().float() for t in inputs((9, 10, 11)))
    rounded = x.bfloat16()
    found = group_norm_relu(rounded, 2, weight, bias)
    assert found.dtype == torch.bfloat16
    exact = F.relu(F.group_norm(rounded.float(), 2, weight, bias))
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


def test_input_is_overwritten_only_where_allowed() -> None:
    x, weight, bias = (t.detach() for t in inputs((4, 5)))
    x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    expected = group_norm_relu(x, 2, weight, bias)
    assert torch.equal(x, before)
    assert torch.equal(group_norm_relu(x, 2, weight, bias, overwrite=True), expected) and torch.equal(x, expected)

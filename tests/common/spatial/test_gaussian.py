# SPDX-License-Identifier: Apache-2.0
"""Smoothing against a convolution, and at the border."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial import gaussian_filter
from common.spatial.gaussian import gaussian_filter_


def convolved(values: Tensor, sigma: float) -> Tensor:
    """With the whole window at once."""
    dims, reach = values.ndim - 2, max(1, round(3 * sigma))
    axis = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=values.dtype) / sigma) ** 2)
    window = axis / axis.sum()
    kernel = window.new_ones([1] * (dims + 2))
    for k in range(dims):
        kernel = kernel * window.view([-1 if j == k else 1 for j in range(dims)])
    function = F.conv2d if dims == 2 else F.conv3d
    parts = [function(values[:, c : c + 1], kernel, padding=reach) for c in range(values.shape[1])]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 8), (2, 9, 1)])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_it_is_a_convolution_with_zeros_outside(size: tuple[int, ...], sigma: float) -> None:
    values = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(gaussian_filter(values, sigma), convolved(values, sigma))
    of_ones = convolved(torch.ones_like(values), sigma)
    torch.testing.assert_close(gaussian_filter(values, sigma, inside=True), convolved(values, sigma) / of_ones)


def test_one_axis_at_a_time_and_none() -> None:
    values = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    both = gaussian_filter(gaussian_filter(values, 0.8, [0]), 0.8, [1])
    torch.testing.assert_close(both, gaussian_filter(values, 0.8))
    assert torch.equal(gaussian_filter(values, 0), values)


@pytest.mark.parametrize("size", [(9, 7), (6, 5, 8), (2, 9, 1)])
@pytest.mark.parametrize("slab", [1, 40, 1 << 18])
@pytest.mark.parametrize("inside", [False, True])
def test_in_place_it_is_the_same_whatever_the_slab(
    size: tuple[int, ...], slab: int, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.spatial.slabs._SLAB_VOXELS", slab)
    values = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = gaussian_filter(values, 0.8, inside=inside)
    kept = values.clone()
    assert gaussian_filter_(values, 0.8, inside) is values
    torch.testing.assert_close(values, expected)
    assert torch.equal(gaussian_filter_(kept.clone(), 0), kept)


def test_a_constant_stays_one_inside() -> None:
    values = torch.full((1, 1, 5, 6, 4), 3.0)
    torch.testing.assert_close(gaussian_filter(values, 2.0, inside=True), values)


def test_its_gradient() -> None:
    values = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gaussian_filter(x, 0.7, inside=True), values)

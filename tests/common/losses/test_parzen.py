# SPDX-License-Identifier: Apache-2.0
"""Windows over the bins of a histogram, against dense ones and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from common.losses.parzen import BoxWindow, CubicWindow, GaussianWindow, Window


def places(window: Window, dtype: torch.dtype) -> Tensor:
    ends = torch.tensor([window.start, window.start + window.extent], dtype=dtype)
    drawn = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return torch.cat([ends, ends[0] + window.extent * drawn])


def gaussian(place: Tensor, bins: int) -> Tensor:
    return (-0.5 * (2.355 * (place[:, None] - torch.arange(bins).to(place) - 0.5)) ** 2).softmax(1)


def cubic(place: Tensor, bins: int) -> Tensor:
    distance = (place[:, None] - torch.arange(bins).to(place)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    return torch.where(distance < 1, near, (2 - distance).clamp(min=0) ** 3 / 6)


def box(place: Tensor, bins: int) -> Tensor:
    return torch.nn.functional.one_hot(place.long().clamp(max=bins - 1), bins).to(place)


def dense(window: Window, values: Tensor, cells: Tensor) -> Tensor:
    """(voxels, bins) of values (taps, voxels)."""
    found = values.new_zeros(len(cells), window.bins)
    for row, offset in zip(values, window.offsets, strict=True):
        found[torch.arange(len(cells)), cells.long() + offset] = row
    return found


CASES = [
    *[(lambda bins, like: GaussianWindow(bins, like), gaussian, bins) for bins in (2, 3, 6, 8, 32)],
    *[(lambda bins, like: CubicWindow(bins), cubic, bins) for bins in (4, 5, 32)],
    *[(lambda bins, like: BoxWindow(bins), box, bins) for bins in (1, 32)],
]


@pytest.mark.parametrize(("make", "expected", "bins"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_and_slopes_are_those_of_all_bins(
    make: Callable[[int, Tensor], Window], expected: Callable[[Tensor, int], Tensor], bins: int, dtype: torch.dtype
) -> None:
    window = make(bins, torch.empty(0, dtype=dtype))
    place = places(window, dtype)
    cells, inside = window.split(place.clone())
    weights = window.weights(inside)
    wanted = expected(place.double(), bins)
    # Differences of places up to the number of bins, and what is left out.
    tolerance = 16 * bins * torch.finfo(dtype).eps
    torch.testing.assert_close(dense(window, weights, cells).double(), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(weights.sum(0).double(), torch.ones(len(place)).double(), rtol=0, atol=tolerance)
    slopes = dense(window, window.slopes(inside, weights), cells)
    derivative = torch.autograd.functional.jacobian(
        lambda x: expected(x, bins).sum(0), place.double(), vectorize=True
    ).T
    # Their size is up to 2.355 squared.
    torch.testing.assert_close(slopes.double(), derivative, rtol=0, atol=6 * tolerance)

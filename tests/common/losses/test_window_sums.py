# SPDX-License-Identifier: Apache-2.0
"""Streamed window sums against sums over windows that are cut out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.losses.window_sums import WindowSums


def cut_out(volume: Tensor, size: int) -> Tensor:
    """Pad with zeros, take the window around every voxel, add up."""
    windows = torch.nn.functional.pad(volume, [size // 2] * (2 * volume.ndim))
    for axis in range(volume.ndim):
        windows = windows.unfold(axis, size, 1)
    return windows.sum(tuple(range(volume.ndim, 2 * volume.ndim)))


@pytest.mark.parametrize(
    ("shape", "size", "depth"),
    [((11, 4, 6), 3, 2), ((11, 4, 6), 5, 4), ((3, 5, 4), 9, 8), ((7, 6), 3, 3), ((6, 3), 7, 6), ((4, 3, 2), 1, 2)],
)
def test_sums_lag_one_radius_behind_and_equal_those_of_windows_cut_out(
    shape: tuple[int, ...], size: int, depth: int
) -> None:
    volumes = torch.rand((2, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sums = WindowSums(2, depth, shape[1:], size, volumes)
    found = []
    for start in range(0, shape[0] + size // 2, depth):
        slab = volumes[:, start : start + depth]
        inside = sums.valid(sums.flat)
        inside[:, : slab.shape[1]] = slab
        inside[:, slab.shape[1] :] = 0
        found.append(sums.valid(sums.push(empty=slab.shape[1] == 0)).clone())
    result = torch.cat(found, 1)[:, size // 2 :][:, : shape[0]]
    expected = torch.stack([cut_out(volume, size) for volume in volumes])
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-13)


def test_clearing_leaves_the_voxels_of_the_planes_and_nothing_else() -> None:
    sums = WindowSums(2, 5, (3, 4), 3, torch.zeros(1))
    sums.flat.fill_(1)
    sums.clear_outside(1, 1, 4)
    expected = torch.zeros(sums.input.shape[1:])
    expected[1:4, :3, :4] = 1
    assert torch.equal(sums.input[1], expected) and sums.input[0].all()

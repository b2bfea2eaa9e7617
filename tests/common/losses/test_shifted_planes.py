# SPDX-License-Identifier: Apache-2.0
"""Shifted volumes against indices of voxels, their adjoint, and sums over windows against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.losses.shifted_planes import Neighbours, Slabs


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("radius", range(5))
@pytest.mark.parametrize("size", [(7, 5), (6, 4, 3)])
def test_sums_are_those_of_the_windows(radius: int, size: tuple[int, ...]) -> None:
    slabs = Slabs(size, radius, 1)
    extended = drawn(slabs.depth + 2 * radius, *slabs.extended)
    buffers = [torch.empty(slabs.length, dtype=torch.float64) for _ in range(3)]
    sums = slabs.sums(buffers, slabs.length, slabs.strides)
    buffers[0].copy_(extended.flatten())
    found = slabs.valid(sums.run()[: slabs.depth * slabs.plane])
    windows = np.lib.stride_tricks.sliding_window_view(extended.numpy(), (2 * radius + 1,) * len(size))
    # Sums of float64 in another order.
    np.testing.assert_allclose(found.numpy(), windows.sum(tuple(range(-len(size), 0))), rtol=1e-12)


@pytest.mark.parametrize(("radius", "dilation"), [(0, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("size", [(9, 5), (13, 2, 4)])
def test_neighbours_of_voxels_beyond_the_border_are_those_of_the_border(
    radius: int, dilation: int, size: tuple[int, ...]
) -> None:
    volume, slabs = drawn(*size), Slabs(size, radius, 1)
    neighbours = Neighbours(volume, slabs, dilation, gradient=True)
    leaf = volume.clone().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for planes in slabs:
        ranges = [(planes.start, planes.stop), *[(0, n) for n in size[1:]]]
        seen = neighbours.load(planes).clone()
        weights = drawn(*seen.shape)
        for row, (axis, step), weight in zip(seen, neighbours.steps, weights, strict=True):
            voxels = [
                torch.arange(first - radius, last + radius).clamp(0, n - 1)
                for (first, last), n in zip(ranges, size, strict=True)
            ]
            voxels[axis] = (voxels[axis] + step).clamp(0, size[axis] - 1)
            expected = leaf[torch.meshgrid(*voxels, indexing="ij")]
            assert row.equal(expected.detach().flatten())
            total = total + (expected.flatten() * weight).sum()
        neighbours.add(weights, planes)
    (gradient,) = torch.autograd.grad(total, leaf)
    # Sums of float64 in another order.
    torch.testing.assert_close(neighbours.volume_gradient(), gradient, rtol=1e-12, atol=1e-12)


def test_slabs_cover_the_volume_and_are_not_thin() -> None:
    slabs = Slabs((21, 4, 5), 2, 1)
    assert [(planes.start, planes.stop) for planes in slabs] == [(0, 8), (8, 16), (16, 21)]
    assert list(Slabs((21, 4, 5), 2, 1 << 20)) == [slice(0, 21)]

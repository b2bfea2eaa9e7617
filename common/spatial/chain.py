# SPDX-License-Identifier: Apache-2.0
"""Displacement fields on grids of several resolutions, one after the other.

The grids cover one extent corner to corner: the first and the last voxel of each axis lie at the same places.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from common.spatial.coordinates import identity_grid
from common.spatial.maps import PointMap
from common.spatial.points import sample_at
from common.spatial.resize import resize_ddf, voxel_ratios
from common.spatial.warp import compose, warp
from common.tracing import without_autocast


def chain_ddf(fields: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """The displacement ``f_1(f_2(... f_n(x))) - x``, where ``f_k`` displaces by the k-th field.

    Each field is interpolated on its own grid, and continued by its border: a coarse one is not enlarged before points
    are looked up in it, which would be another function.

    Args:
        fields: each (B, d, *spatial), in voxels of its own grid, the one that is applied last first.
        size: of the grid of the result.

    Returns:
        (B, d, *size), in its voxels.
    """
    total = resize_ddf(fields[-1], size)
    for field in reversed(fields[:-1]):
        total = compose(field, total) if tuple(field.shape[2:]) == tuple(size) else total + _followed(field, total)
    return total


def chain_map(fields: Sequence[Tensor], size: Sequence[int]) -> PointMap:
    """The map ``f_1(f_2(... f_n(x)))`` of points anywhere; it can be differentiated twice.

    Args:
        fields: as in :func:`chain_ddf`.
        size: of the grid in whose voxels points (B, N, d) are given and returned.
    """

    return ChainMap(fields, size)


class ChainMap:
    """What :func:`chain_map` returns, with what it is made of."""

    def __init__(self, fields: Sequence[Tensor], size: Sequence[int]) -> None:
        self.fields, self.size = fields, size

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (B, N, d) go."""
        for field in reversed(self.fields):
            ratios = voxel_ratios(self.size, field.shape[2:], field)
            points = points + sample_at(field, points * ratios).movedim(1, 2) / ratios
        return points


def _followed(field: Tensor, ddf: Tensor) -> Tensor:
    """What a field of another grid adds where a displacement points, in voxels of the latter."""
    ratios = voxel_ratios(ddf.shape[2:], field.shape[2:], ddf).view(1, -1, *[1] * (ddf.ndim - 2))
    grid = identity_grid(ddf.shape[2:], ddf.device, ddf.dtype)
    with without_autocast(ddf):
        return warp(field, ratios * (grid + ddf) - grid) / ratios

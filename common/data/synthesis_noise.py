# SPDX-License-Identifier: Apache-2.0
"""Smooth noise: Gaussian numbers on coarse grids, enlarged linearly and summed (Perlin noise as SynthMorph has it).

Hoffmann et al., SynthMorph, IEEE TMI 41 (2022) 543-558; adalca/neurite (Apache-2.0), ``draw_perlin``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Grids = list[Tensor]
"""Noise (B, C, *coarse) on a grid per scale."""


def draw_grids(
    generator: torch.Generator, size: Sequence[int], scales: Sequence[float], largest: float, channels: int
) -> Grids:
    """Noise of one item for :func:`enlarged_sum`.

    Args:
        generator: of the random numbers; they are drawn where it lies.
        size: voxels per axis of the smooth noise.
        scales: voxels from one number to the next, one per grid.
        largest: the standard deviation of each grid is uniform between 0 and this.
        channels: C.

    Returns:
        (1, C, *ceil(size / scale)) for each scale.
    """
    device, grids = generator.device, []
    for scale in scales:
        deviation = largest * torch.rand((), generator=generator, device=device)
        coarse = [-int(-n // scale) for n in size]
        grids.append(deviation * torch.randn((1, channels, *coarse), generator=generator, device=device))
    return grids


def enlarged_sum(grids: Grids, size: Sequence[int]) -> Tensor:
    """The sum of the grids, each enlarged linearly with its corners on those of the result, (B, C, *size) float32.

    Enlarging makes values smaller: those between numbers are means of these.
    """
    return torch.stack([enlarged(grid, size) for grid in grids]).sum(0) if len(grids) > 1 else enlarged(grids[0], size)


def enlarged(grid: Tensor, size: Sequence[int]) -> Tensor:
    """A coarse grid (B, C, *coarse) on a finer one, (B, C, *size), corner to corner.

    Axis by axis as a product with a matrix: for grids of a few numbers a fraction of the time of an interpolation that
    looks at all corners of each voxel.
    """
    for axis, n in enumerate(size):
        grid = along_axis(grid, _linear_weights(grid.shape[2 + axis], n, grid), axis)
    return grid


def along_axis(values: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Each line of values (B, C, *spatial) along a spatial axis times a matrix (new, old) or (B, 1, new, old)."""
    if axis == values.ndim - 3:
        if matrix.ndim > 2:
            matrix = matrix[(..., *[None] * (values.ndim - 4), slice(None), slice(None))]
        return values @ matrix.mT
    shape = values.shape
    lines = values.flatten(3 + axis)
    if matrix.ndim > 2:
        matrix = matrix[(..., *[None] * axis, slice(None), slice(None))]
    return (matrix @ lines).reshape(*shape[: 2 + axis], matrix.shape[-2], *shape[3 + axis :])


def _linear_weights(old: int, new: int, like: Tensor) -> Tensor:
    """(new, old), of each of ``new`` evenly spaced places the shares of the two nearest of ``old`` numbers."""
    places = torch.linspace(0, old - 1, new, device=like.device, dtype=like.dtype)
    distance = places[:, None] - torch.arange(old, device=like.device, dtype=like.dtype)
    return (1 - distance.abs()).clamp_(min=0)

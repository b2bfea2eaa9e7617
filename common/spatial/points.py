# SPDX-License-Identifier: Apache-2.0
"""Linear interpolation at scattered points, with its exact derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def linear_at(
    rows: Tensor, shape: Sequence[int], points: Tensor, derivative: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Values of a vector image at points; outside, those of the nearest point of the image.

    Args:
        rows: (voxels, C), the image with its channels last and its spatial axes flattened.
        shape: spatial shape.
        points: (N, d), positions in voxels.
        derivative: whether the derivative is wanted too.

    Returns:
        (N, C); and, where wanted, (N, C, d): the derivative of the interpolant along each axis, zero outside.
    """
    cells = [_cell(points[:, axis], size) for axis, size in enumerate(shape)]
    corners = [points.new_zeros(points.shape[0], dtype=torch.long)]
    for (first, _, _), size in zip(cells, shape, strict=True):
        # The upper neighbour of an axis of one voxel is the voxel itself.
        corners = [corner * size + first + high for corner in corners for high in (0, int(size > 1))]
    values = [rows.index_select(0, corner).to(points.dtype) for corner in corners]
    # Axis after axis, last one first, neighbours are joined; the derivatives along the axes done so far go with them.
    slopes: list[list[Tensor]] = []
    for _, fraction, inside in reversed(cells):
        pairs = _paired(values)
        joined = [[torch.lerp(low, high, fraction) for low, high in _paired(slope)] for slope in slopes]
        slopes = [[(high - low) * inside for low, high in pairs], *joined] if derivative else []
        values = [torch.lerp(low, high, fraction) for low, high in pairs]
    return values[0], torch.stack([slope[0] for slope in slopes], dim=2) if derivative else None


def _cell(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lower neighbour (N,), place between the neighbours and whether the image reaches there, both (N, 1)."""
    clamped = position.clamp(0, size - 1)
    first = clamped.floor().clamp_(max=max(size - 2, 0))
    inside = (position >= 0) & (position <= size - 1) if size > 1 else torch.zeros_like(position, dtype=torch.bool)
    return first.long(), (clamped - first)[:, None], inside[:, None]


def _paired(values: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))

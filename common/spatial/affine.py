# SPDX-License-Identifier: Apache-2.0
"""Affine maps between two images of one grid, together with displacement fields."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.spatial.coordinates import identity_grid


def normalised_spacing(size: Sequence[int], spacing: Sequence[float] | None = None) -> tuple[float, ...]:
    """Voxel size along each axis in units of half the image's longest extent.

    Args:
        size: spatial shape.
        spacing: voxel size along each axis; None for 1.
    """
    sizes = (1.0,) * len(size) if spacing is None else tuple(spacing)
    longest = max(n * v for n, v in zip(size, sizes, strict=True))
    return tuple(2 * v / longest for v in sizes)


def affine_in_voxels(matrix: Tensor, size: Sequence[int], spacing: Sequence[float] | None = None) -> Tensor:
    """An affine map around the middle of the image, in units of half its longest extent, as one of voxels.

    Args:
        matrix: (B, d + 1, d + 1), homogeneous.
        size: spatial shape of the image.
        spacing: voxel size along each axis; None for 1.

    Returns:
        (B, d, d + 1): linear part and translation.
    """
    scale = matrix.new_tensor(normalised_spacing(size, spacing))
    centre = (matrix.new_tensor(size) - 1) / 2
    linear = matrix[:, :-1, :-1] * scale / scale[:, None]
    moved = matrix[:, :-1, -1] / scale + centre - linear @ centre
    return torch.cat([linear, moved[:, :, None]], dim=2)


def followed_by_affine(ddf: Tensor, matrix: Tensor, factor: int = 1) -> Tensor:
    """The displacement of ``x -> A(x + ddf(x))``.

    Args:
        ddf: (B, d, *spatial), in voxels of the image, on its grid or on a coarser one with the same outer edges.
        matrix: (B, d, d + 1), A as :func:`affine_in_voxels` gives it.
        factor: voxel size of the grid in voxels of the image.

    Returns:
        (B, d, *spatial), in voxels of the image.
    """
    grid = identity_grid(ddf.shape[2:], ddf.device, ddf.dtype) * factor + (factor - 1) / 2
    moved = torch.einsum("bij,bj...->bi...", matrix[:, :, :-1], grid + ddf)
    return moved + matrix[:, :, -1].view(*ddf.shape[:2], *[1] * (ddf.ndim - 2)) - grid

# SPDX-License-Identifier: Apache-2.0
"""Local volume change of a deformation."""

from __future__ import annotations

import torch
from torch import Tensor

from common.spatial.coordinates import check_ddf


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``x -> x + ddf(x)``.

    Derivatives are those of ``numpy.gradient``: central differences inside, one-sided ones in the outermost voxels.
    Values above 1 expand, between 0 and 1 shrink, at or below 0 fold.

    Args:
        ddf: (B, d, *spatial), in voxels; every axis has at least two voxels.

    Returns:
        (B, 1, *spatial), float32 (float64 for float64 input).

    Raises:
        ValueError: when ``ddf`` is no displacement field or an axis has a single voxel.
    """
    check_ddf(ddf)
    if min(ddf.shape[2:]) < 2:
        raise ValueError(f"ddf of spatial shape {tuple(ddf.shape[2:])} has an axis of one voxel: no derivative there.")
    ddf = ddf.to(torch.promote_types(ddf.dtype, torch.float32))
    dims = ddf.shape[1]
    rows = [list(torch.gradient(ddf[:, k], dim=list(range(1, dims + 1)))) for k in range(dims)]
    for k in range(dims):
        rows[k][k] = rows[k][k] + 1.0
    return determinant(rows).unsqueeze(1)


def determinant(rows: list[list[Tensor]]) -> Tensor:
    """Determinant of a 2x2 or 3x3 matrix whose entries are tensors of one shape."""
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

# SPDX-License-Identifier: Apache-2.0
"""How far apart two headers put the voxels of an image: the one measure by which grids count as the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GRID_TOLERANCE = 0.01
"""Voxels; grids that nowhere lie further apart count as one."""
_EPS = torch.finfo(torch.float32).eps


def voxels_apart(shape: Sequence[int], one: Tensor, other: Tensor) -> float:
    """Largest distance, over the corners of an array, between the places that two affines give them.

    Args:
        shape: of the array, two or three axes.
        one: (4, 4), voxels to millimetres.
        other: the same.

    Returns:
        Voxels of the finer of the two, beyond what rounding to float32, in which headers store them, explains; infinite
        where an affine is not finite or cannot be inverted.
    """
    one, other = (torch.as_tensor(affine).detach().to("cpu", torch.float64) for affine in (one, other))
    ends = [torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in shape]
    corners = torch.cartesian_prod(*ends, *[torch.zeros(1, dtype=torch.float64)] * (3 - len(ends)))
    places = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in (one, other)]
    if not all(bool(torch.isfinite(place).all()) for place in places):
        return float("inf")
    # Either header rounds the terms that a coordinate is the sum of.
    terms = torch.maximum(*[corners @ affine[:3, :3].abs().T + affine[:3, 3].abs() for affine in (one, other)])
    apart = ((places[0] - places[1]).abs() - _EPS * terms).clamp(min=0)
    if not bool(apart.any()):
        return 0.0
    size = min(float(affine[:3, : len(ends)].norm(dim=0).min()) for affine in (one, other))
    return float(apart.norm(dim=1).max()) / size if size > 0 else float("inf")

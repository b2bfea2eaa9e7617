# SPDX-License-Identifier: Apache-2.0
"""How far apart two headers put the voxels of an image: the one measure by which grids count as the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

GRID_TOLERANCE = 0.01
"""Voxels; grids that nowhere lie further apart count as one."""
_EPS = torch.finfo(torch.float32).eps
_TURN = 2 * (4 * _EPS) ** 0.5
"""Radians about the first voxel that a qform, a quaternion in single precision, cannot tell."""


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


def arrays_apart(shape: Sequence[int], one: Tensor, other: Tensor) -> float:
    """As :func:`voxels_apart`, for arrays that a person takes to lie on one grid: the turn of a qform is no difference.

    One and the same grid, stated as a sform in one file and as a qform in the other, differs by such a turn.
    """
    apart = voxels_apart(shape, one, other)
    one, other = (torch.as_tensor(affine).detach().to("cpu", torch.float64) for affine in (one, other))
    if apart <= GRID_TOLERANCE or float(torch.linalg.det(one[:3, :3]).abs()) == 0 or not apart < float("inf"):
        return apart
    between = other[:3, :3] @ torch.linalg.inv(one[:3, :3])
    turn = (between - between.T) / 2
    if float(turn.norm()) > 2**0.5 * _TURN:
        return apart
    straight = other.clone()
    straight[:3, :3] = (between - turn) @ one[:3, :3]
    return voxels_apart(shape, one, straight)

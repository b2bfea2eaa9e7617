# SPDX-License-Identifier: Apache-2.0
"""What rounding leaves of a place in the world: whether a point on the border of a scan is inside, and where ties go.

Headers are stored in single precision, and ``inv(M) @ F`` of two oblique ones is 1 + 1e-16 where 1 is meant. Neither
may decide about a plane of voxels. So numbers that are whole, halves or sixteenths as far as single precision can tell
become exactly that, and :data:`BORDER` and :data:`TIE` say how near is near enough where single positions count.
"""

from __future__ import annotations

import torch
from torch import Tensor

BORDER = 1e-3
"""Voxels by which a point may lie beyond the outermost centres of a label map and count as on them, where headers say
how scans lie: grids of which single entries differ by less are one, too."""
TIE = 1e-5
"""Voxels by which a point may miss the middle between two voxels, or the edge of an image half a voxel beyond its
outermost centres, and count as there: the rounding of a position in single precision."""

_UNIT = float(torch.finfo(torch.float32).eps) / 2
_ROUNDINGS = 4
"""Each number of a header was rounded once; what made it, often once more."""
_PARTS = 16


def between_affines(moving: Tensor, fixed: Tensor, alignment: Tensor | None = None) -> Tensor:
    """Voxels of the fixed grid to voxels of the moving grid; exact where the grids have voxel centres in common.

    Args:
        moving: (4, 4) float64, voxels of the moving grid to its world.
        fixed: (4, 4) float64, voxels of the fixed grid to its world.
        alignment: (4, 4) float64, fixed world to moving world; None for one world.

    Returns:
        (4, 4), float64: ``inv(moving) @ alignment @ fixed``, each entry a multiple of 1/16 where headers in single
        precision cannot tell it from one.
    """
    back = torch.linalg.inv(moving)
    there = fixed if alignment is None else alignment @ fixed
    sizes = fixed.abs() if alignment is None else alignment.abs() @ fixed.abs()
    between = back @ there
    # First-order bound of what an error of one unit in every number of the headers does to each entry.
    bound = _ROUNDINGS * _UNIT * (back.abs() @ (sizes + moving.abs() @ between.abs()))
    return _settled(between, bound, _PARTS)


def turned_vectors(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Vectors in single precision multiplied by a matrix; whole and half numbers and zeros come out exactly.

    Args:
        matrix: (d, d), float64.
        vectors: (d, N).

    Returns:
        (d, N), float32.
    """
    matrix = matrix.to(vectors.device, torch.float32)
    return _settled(matrix @ vectors, _ROUNDINGS * _UNIT * (matrix.abs() @ vectors.abs()), 2)


def _settled(values: Tensor, bound: Tensor, parts: int) -> Tensor:
    """Values that are nearer than ``bound`` to a multiple of 1 / parts become that multiple."""
    multiple = (values * parts).round() / parts
    return torch.where((values - multiple).abs() <= bound, multiple, values)

# SPDX-License-Identifier: Apache-2.0
"""Fields of a lattice of B-spline control points that lie at voxels, one beyond the border: free-form deformation.

Source: Rueckert et al., "Nonrigid registration using free-form deformations: application to breast MR images", IEEE TMI
18(8), 1999; as in MIDIR (Qiu et al., MIDL 2021) and TransMorph-bspl. Control points of
:func:`common.spatial.bspline_field` lie elsewhere: in the middle of blocks of voxels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from common.spatial.bspline import cubic_bspline
from common.tracing import without_autocast


def lattice_size(size: Sequence[int], spacing: int) -> list[int]:
    """Control points along each axis that a grid of voxels depends on: ceil((n - 1) / spacing) + 3."""
    return [(n + spacing - 2) // spacing + 3 for n in size]


def free_form_field(control: Tensor, size: Sequence[int], spacing: int) -> Tensor:
    r"""Evaluate a field at voxels; control point m lies at voxel (m - 1) spacing, and its values are voxels, too.

    Along each axis, with the cubic B-spline :math:`\beta` and without a prefilter,

    .. math:: u(x) = \sum_m \beta(x / \mathrm{spacing} + 1 - m)\, c_m.

    Args:
        control: (B, C, *lattice_size(size, spacing)).
        size: spatial shape of the voxels.
        spacing: of the control points, in voxels.

    Returns:
        (B, C, *size), float32 (float64 for float64 input) whatever autocast says.
    """
    field = control.to(torch.promote_types(control.dtype, torch.float32))
    with without_autocast(control):
        for axis, n in enumerate(size, start=2):
            places = torch.arange(n, device=field.device, dtype=field.dtype) / spacing + 1
            points = torch.arange(field.shape[axis], device=field.device, dtype=field.dtype)
            weights = cubic_bspline(places[:, None] - points)
            field = (field.movedim(axis, -1) @ weights.mT).movedim(-1, axis)
    return field.contiguous()

# SPDX-License-Identifier: Apache-2.0
"""Regularity of a deformation from its Jacobian determinant by central differences.

Published tables call different quantities by the same name. Each has a function of its own here, and all of them come
out of one pass over the field, :func:`jacobian_statistics`:

* ``fold_fraction``: det <= 0 over all voxels, one-sided differences in the outermost voxels (TransMorph, VoxelMorph);
* ``fold_fraction_interior``: det <= 0 among voxels at least 2 from the border, over *all* voxels (EOIR's tables);
* ``sdlogj_l2r``: std of log(clip(det + 3)) at least 2 voxels from the border (Learn2Reg), masked or not;
* ``sdlogj``: std of log(det) where det > 0, the quantity that the name promises.

For non-diffeomorphic volumes see :mod:`common.metrics.digital`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.checks import InputError
from common.spatial.coordinates import check_ddf
from common.spatial.jacobian import determinant_slabs

CROP = 2
"""Voxels that the Learn2Reg evaluation drops at each side."""


class JacobianStatistics(NamedTuple):
    """What one pass over a field tells; every entry is (B,), float64.

    Attributes:
        fold_fraction: share of voxels with det <= 0, in [0, 1], whole volume.
        fold_fraction_interior: voxels with det <= 0 at least 2 from the border, over the number of all voxels.
        folded: number of voxels with det <= 0 inside the mask, whole volume without one.
        sdlogj: std of log(det) over the voxels with det > 0 inside the mask; NaN without such voxels.
        sdlogj_l2r: std of log(clip(det + 3, clip, 1 / clip)) at least 2 voxels from the border, whatever the mask;
            NaN where no voxel is that far from it.
        sdlogj_l2r_masked: the same inside the mask.
    """

    fold_fraction: Tensor
    fold_fraction_interior: Tensor
    folded: Tensor
    sdlogj: Tensor
    sdlogj_l2r: Tensor
    sdlogj_l2r_masked: Tensor


def jacobian_statistics(ddf: Tensor, mask: Tensor | None = None, clip: float = 1e-9) -> JacobianStatistics:
    """Folding and spread of the Jacobian determinant of ``x + ddf(x)``.

    Works slab by slab along the first axis, so that the memory needed does not grow with the volume.

    Args:
        ddf: (B, d, *spatial), in voxels; of a single slice the map inside its plane counts. float64 fields are
            evaluated in float64.
        mask: (B, 1, *spatial); voxels above 0 count in ``folded``, ``sdlogj`` and ``sdlogj_l2r_masked``.
        clip: bounds of ``sdlogj_l2r`` are ``clip`` and ``1 / clip``: 1e-9 in Learn2Reg, 1e-8 in EOIR's tables.

    Returns:
        See :class:`JacobianStatistics`.

    Raises:
        InputError: when ``mask`` does not fit.
        ValueError: when ``ddf`` is no displacement field.
    """
    check_field(ddf, mask, minimum=1)
    rows = [_of_one_field(ddf[b : b + 1].detach(), None if mask is None else mask[b, 0], clip) for b in range(len(ddf))]
    return JacobianStatistics(*(torch.stack(list(column)).double() for column in zip(*rows, strict=True)))


def _of_one_field(ddf: Tensor, mask: Tensor | None, clip: float) -> list[Tensor]:
    """The entries of :class:`JacobianStatistics` for a field (1, d, *spatial) and a mask (*spatial)."""
    shape = ddf.shape[2:]
    # Folded voxels: all, interior, mask. Moments of log(det), and of log((det + 3) / 4) without and with the mask.
    folds = torch.zeros(3, dtype=torch.float64, device=ddf.device)
    logs, l2r, l2r_masked = (torch.zeros_like(folds) for _ in range(3))
    for start, stop, dets in determinant_slabs(ddf):
        det = dets[0, 0]
        interior = _interior(start, stop, shape)
        folded = ~(det > 0)  # a NaN is no diffeomorphism either
        in_mask = folded if mask is None else folded & (mask[start:stop] > 0)
        folds += torch.stack([folded.sum(), folded[interior].sum(), in_mask.sum()])
        positive = ~folded if mask is None else ~folded & (mask[start:stop] > 0)
        logs += _moments(det[positive].log())
        # Divided by its value for the identity, 4: moments about 0 then lose no digits.
        shifted = (det[interior].double() + 3).clamp_(clip, 1 / clip).mul_(0.25).log_()
        l2r += _moments(shifted)
        if mask is not None:
            l2r_masked += _moments(shifted[mask[start:stop][interior] > 0])
    spread = _std(l2r)
    masked = spread if mask is None else _std(l2r_masked)
    return [folds[0] / shape.numel(), folds[1] / shape.numel(), folds[2], _std(logs), spread, masked]


def fold_fraction(ddf: Tensor) -> Tensor:
    """Share of voxels whose determinant (``numpy.gradient`` derivatives) is 0 or less; tables print it times 100.

    Args:
        ddf: (B, d, *spatial), in voxels.

    Returns:
        (B,), float64, in [0, 1].
    """
    return jacobian_statistics(ddf).fold_fraction


def fold_fraction_interior(ddf: Tensor) -> Tensor:
    """Folded voxels at least 2 voxels from the border, over the number of *all* voxels: EOIR's under-counting form.

    Args:
        ddf: (B, d, *spatial), in voxels.

    Returns:
        (B,), float64, in [0, 1].
    """
    return jacobian_statistics(ddf).fold_fraction_interior


def sdlogj(ddf: Tensor, mask: Tensor | None = None) -> Tensor:
    """Standard deviation (population) of log(det) over the voxels with det > 0.

    Folded voxels have no logarithm: report their number (``jacobian_statistics(ddf, mask).folded``) beside it.

    Args:
        ddf: (B, d, *spatial), in voxels.
        mask: (B, 1, *spatial), voxels above 0 count; default all.

    Returns:
        (B,), float64; NaN when no voxel is left.
    """
    return jacobian_statistics(ddf, mask).sdlogj


def sdlogj_l2r(ddf: Tensor, mask: Tensor | None = None, clip: float = 1e-9) -> Tensor:
    """SDlogJ as Learn2Reg's script computes it: std of log(clip(det + 3)), two voxels off each border.

    The 3 is added to the determinant, so the figure is about std(det) / 4 and no spread of log(det).

    Args:
        ddf: (B, d, *spatial), in voxels.
        mask: (B, 1, *spatial), foreground of the fixed image for the challenge's masked tasks; default all.
        clip: see :func:`jacobian_statistics`.

    Returns:
        (B,), float64.
    """
    return jacobian_statistics(ddf, mask, clip).sdlogj_l2r_masked


def check_field(ddf: Tensor, mask: Tensor | None, minimum: int) -> None:
    """Refuse fields with an axis below ``minimum`` voxels and masks that are not (B, 1, *spatial).

    Raises:
        InputError: naming the shapes.
        ValueError: when ``ddf`` is no displacement field.
    """
    check_ddf(ddf)
    if min(ddf.shape[2:]) < minimum:
        raise InputError(
            f"The displacement field has spatial shape {tuple(ddf.shape[2:])}; this metric needs at least {minimum} "
            "voxels along every axis."
        )
    if mask is not None and mask.shape != (ddf.shape[0], 1, *ddf.shape[2:]):
        raise InputError(
            f"The mask has shape {tuple(mask.shape)}, but for a field of shape {tuple(ddf.shape)} it must be "
            f"{(ddf.shape[0], 1, *ddf.shape[2:])}."
        )


def _interior(start: int, stop: int, shape: torch.Size) -> tuple[slice, ...]:
    """Part of the planes [start, stop) that is at least ``CROP`` voxels away from every border."""
    first = slice(max(CROP - start, 0), max(min(stop, shape[0] - CROP) - start, 0))
    return (first, *(slice(CROP, -CROP) for _ in shape[1:]))


def _moments(values: Tensor) -> Tensor:
    """Number, sum and sum of squares."""
    values = values.double()
    return torch.stack([values.new_tensor(values.numel()), values.sum(), values.square().sum()])


def _std(moments: Tensor) -> Tensor:
    count, total, squares = moments
    return (squares / count - (total / count).square()).clamp(min=0).sqrt()

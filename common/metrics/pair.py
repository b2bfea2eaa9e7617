# SPDX-License-Identifier: Apache-2.0
"""All figures of one registered pair, in memory: what a training's validation and the scoring of files both call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.metrics.consistency import inverse_consistency_error
from common.metrics.digital import nda, ndv_lumir
from common.metrics.jacobian import CROP, jacobian_statistics
from common.metrics.landmarks import tre_l2r, tre_lumir
from common.metrics.overlap import dice_l2r, mean_over_labels
from common.metrics.surface import hd95_l2r
from common.spatial.labels import warp_labels

HD95_UNITS = ("voxels", "millimetres")


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Corresponding points of a pair, or volumes that show them.

    Attributes:
        moving: points (1, N, d) in voxels, or a volume of integers (1, 1, *moving grid).
        fixed: the same of the fixed image; points are given in voxels of one grid with those of the moving image.
        spacing: size of the voxels that errors are measured in, per array axis; None measures in voxels.
    """

    moving: Tensor
    fixed: Tensor
    spacing: Sequence[float] | None = None


@dataclass(frozen=True, eq=False)
class RegisteredPair:
    """What is known of one registered pair; everything but the field may be missing.

    Attributes:
        ddf: (1, d, *spatial) in voxels of the fixed grid.
        moving_label: (1, 1, *moving grid), integers.
        fixed_label: (1, 1, *spatial), integers.
        foreground: (1, 1, *spatial) bool, where the field is judged; None for everywhere.
        inverse_ddf: (1, d, *spatial), the displacements back.
        spacing: size of the fixed image's voxels in millimetres, per array axis.
        landmarks: by the name of their figure, such as "tre".
        to_moving: (1, d, *spatial), where to sample what lies on the moving grid; None where that is ``ddf``.
        to_moving_before: the same without registration; None where voxels of both grids correspond.
        by_header: whether the scans lie on two grids, see :func:`common.spatial.warp_labels`; on one, the challenges'
            border holds to the last digit.
    """

    ddf: Tensor
    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None
    foreground: Tensor | None = None
    inverse_ddf: Tensor | None = None
    spacing: Sequence[float] | None = None
    landmarks: Mapping[str, Landmarks] = field(default_factory=dict)
    to_moving: Tensor | None = None
    to_moving_before: Tensor | None = None
    by_header: bool = False


def pair_figures(pair: RegisteredPair, labels: Sequence[int] | None = None, hd95: str | None = None) -> dict[str, Any]:
    """Measure one pair.

    Args:
        pair: one pair; batches are taken apart by the caller.
        labels: label values that count; None leaves label figures out.
        hd95: unit of the surface distance, one of ``HD95_UNITS``; None leaves it out.

    Returns:
        The figures that :class:`common.metrics.handlers.RegistrationMetrics` explains, as float, as far as the pair has
        what they need, NaN where they are undefined; ``undefined``, where there are such: {figure: why};
        ``dice_per_label``, ``hd95_per_label`` and the same "_before" as {label: float}. Those before registration are
        left out where arrays have two shapes and ``to_moving_before`` does not say how they lie.

    Raises:
        InputError: when ``hd95`` is in millimetres and the pair has no spacing, or tensors do not fit each other.
    """
    return _label_figures(pair, labels, hd95) | _landmark_figures(pair) | _field_figures(pair)


def _label_figures(pair: RegisteredPair, labels: Sequence[int] | None, hd95: str | None) -> dict[str, Any]:
    if labels is None or pair.moving_label is None or pair.fixed_label is None:
        return {}
    if hd95 == "millimetres" and pair.spacing is None:
        raise InputError("HD95 in millimetres needs the spacing of each pair, but one has none.")
    moving, fixed = pair.moving_label, pair.fixed_label
    candidates = {"": warp_labels(moving, _to_moving(pair), pair.by_header)}
    if pair.to_moving_before is not None:
        candidates["_before"] = warp_labels(moving, pair.to_moving_before, pair.by_header)
    elif moving.shape == fixed.shape:
        candidates["_before"] = moving
    tables = {f"dice{when}": dice_l2r(warped, fixed, labels, moving) for when, warped in candidates.items()}
    if hd95 is not None:
        spacing = pair.spacing if hd95 == "millimetres" else None
        for when, warped in candidates.items():
            tables[f"hd95{when}"] = hd95_l2r(warped, fixed, labels, moving, spacing)
    means = {name: float(mean_over_labels(table)) for name, table in tables.items()}
    each = {f"{name}_per_label": dict(zip(labels, t[0].tolist(), strict=True)) for name, t in tables.items()}
    return means | each


def _landmark_figures(pair: RegisteredPair) -> dict[str, float]:
    """Errors of landmarks after registration and before, and of those of the moving image on the way back."""
    errors = {}
    for name, marks in pair.landmarks.items():
        if marks.moving.ndim == 3:
            errors[name] = tre_l2r(pair.ddf, marks.moving, marks.fixed, marks.spacing)
            errors[f"{name}_before"] = tre_l2r(None, marks.moving, marks.fixed, marks.spacing)
            if pair.inverse_ddf is not None:
                errors[f"{name}_back"] = tre_l2r(pair.inverse_ddf, marks.fixed, marks.moving, marks.spacing)
            continue
        size = 1 if marks.spacing is None else marks.spacing
        errors[name] = tre_lumir(marks.moving, marks.fixed, _to_moving(pair), size)
        if pair.to_moving_before is not None or marks.fixed.shape == marks.moving.shape:
            errors[f"{name}_before"] = tre_lumir(marks.moving, marks.fixed, pair.to_moving_before, size)
    return {name: float(error.mean()) for name, error in errors.items()}


def _field_figures(pair: RegisteredPair) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    if pair.inverse_ddf is not None:
        error = inverse_consistency_error(pair.ddf, pair.inverse_ddf, pair.spacing, pair.foreground)
        figures["inverse_consistency"] = float(error.mean)
        figures["inverse_consistency_max"] = float(error.maximum)
    statistics = jacobian_statistics(pair.ddf, pair.foreground)
    undefined = _undefined(pair.ddf)
    measure = nda if pair.ddf.ndim == 4 else ndv_lumir
    volume = math.nan if "ndv" in undefined else float(measure(pair.ddf, pair.foreground).percent)
    if undefined:
        figures["undefined"] = undefined
    return {
        **figures,
        "fold_fraction": 100 * float(statistics.fold_fraction),
        "sdlogj": float(statistics.sdlogj),
        "sdlogj_l2r": float(statistics.sdlogj_l2r),
        "sdlogj_l2r_masked": float(statistics.sdlogj_l2r_masked),
        "ndv": volume,
    }


def _undefined(ddf: Tensor) -> dict[str, str]:
    """Figures that a field of few slices has not, and why."""
    thinnest = min(ddf.shape[2:])
    least = {"ndv": 2 if ddf.ndim == 4 else 3, **dict.fromkeys(("sdlogj_l2r", "sdlogj_l2r_masked"), 2 * CROP + 1)}
    return {
        name: f"needs {count} voxels along every axis, but the field has {thinnest}"
        for name, count in least.items()
        if thinnest < count
    }


def _to_moving(pair: RegisteredPair) -> Tensor:
    return pair.ddf if pair.to_moving is None else pair.to_moving

# SPDX-License-Identifier: Apache-2.0
"""Overlap of label maps: Dice of hard labels from one joint histogram.

Published tables differ in what they do with labels that are missing. :func:`dice_per_label` states the policy;
``dice_l2r`` and ``dice_voi`` are the two that tables use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from common.checks import InputError

_CHUNK = 1 << 20
"""Voxels counted at a time, so that the int64 pair codes stay small."""
_TABLE = 1 << 20
"""Values from 0 up to here are looked up in a table of all of them, others are searched."""


def dice_per_label(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    moving: Tensor | None = None,
    absent: str = "skip",
    eps: float = 0.0,
) -> Tensor:
    """Dice ``2 |F and W| / (|F| + |W| + eps)`` of every label.

    Args:
        warped: (B, 1, *spatial), the moving labels after warping, see :func:`common.spatial.labels.warp_labels`.
        fixed: (B, 1, *spatial), integer labels.
        labels: label values, in the order of the result.
        moving: (B, 1, *spatial'), the moving labels before warping. Used by ``absent="skip"`` only: a label that it
            does not hold is skipped too. Without it, such a label counts as one that was lost by warping.
        absent: "skip" gives NaN for labels that are missing in ``fixed`` or ``moving``; a label that only vanished by
            warping has Dice 0. "zero" gives 0 for whatever does not overlap.
        eps: added to the denominator.

    Returns:
        (B, len(labels)), float64, in [0, 1] or NaN.

    Raises:
        InputError: when a map has a floating dtype, shapes differ, labels repeat or ``absent`` is unknown.
    """
    if absent not in ("skip", "zero"):
        raise InputError(f'absent is {absent!r}; it must be "skip" (NaN) or "zero".')
    check_label_pair(warped, fixed)
    joint = torch.stack([_joint_histogram(f, labels, w) for f, w in zip(fixed, warped, strict=True)]).double()
    in_fixed, in_warped = joint.sum(2)[:, 1:], joint.sum(1)[:, 1:]
    overlap = joint.diagonal(dim1=1, dim2=2)[:, 1:]
    total = in_fixed + in_warped + eps
    dice = torch.where(total > 0, 2 * overlap / total, 0.0)
    if absent == "skip":
        missing = in_fixed == 0
        if moving is not None:
            missing |= ~labels_present(moving, labels)
        dice = dice.masked_fill(missing, torch.nan)
    return dice


def dice_l2r(warped: Tensor, fixed: Tensor, labels: Sequence[int], moving: Tensor | None = None) -> Tensor:
    """Dice by the rule of Learn2Reg and LUMIR: labels missing in the fixed or the *unwarped* moving map are skipped.

    Args:
        warped: (B, 1, *spatial), integer labels.
        fixed: (B, 1, *spatial), integer labels.
        labels: label values; LUMIR's official list holds the background 0.
        moving: (B, 1, *spatial'), unwarped; needed for the official figure, see :func:`dice_per_label`.

    Returns:
        (B, len(labels)), float64; NaN where skipped, 0 where warping lost the label. Average with
        :func:`mean_over_labels`.
    """
    return dice_per_label(warped, fixed, labels, moving, absent="skip")


def dice_voi(warped: Tensor, fixed: Tensor, labels: Sequence[int]) -> Tensor:
    """Dice of TransMorph's and EOIR's validation: missing labels count as 0, 1e-5 is added to the denominator.

    Args:
        warped: (B, 1, *spatial), integer labels.
        fixed: (B, 1, *spatial), integer labels.
        labels: label values.

    Returns:
        (B, len(labels)), float64; the published figure is the plain mean.
    """
    return dice_per_label(warped, fixed, labels, absent="zero", eps=1e-5)


def mean_over_labels(values: Tensor) -> Tensor:
    """Mean of a per-label metric over the labels that were not skipped (NaN).

    Args:
        values: (B, L); an infinite distance makes the mean infinite, as in the official evaluation.

    Returns:
        (B,), float64, NaN where every label was skipped.
    """
    return values.double().nanmean(dim=1)


def labels_present(label: Tensor, labels: Sequence[int]) -> Tensor:
    """Which of ``labels`` occur in each map.

    Args:
        label: (B, 1, *spatial), integer labels.
        labels: label values.

    Returns:
        (B, len(labels)), bool.
    """
    return torch.stack([_joint_histogram(one, labels).flatten()[1:] > 0 for one in label])


def check_label_pair(warped: Tensor, fixed: Tensor) -> None:
    """Refuse two tensors that are not label maps (B, 1, *spatial) on one grid.

    Raises:
        InputError: naming shapes or dtype.
    """
    for name, label in (("fixed", fixed), ("warped", warped)):
        if label.is_floating_point() or label.is_complex():
            raise InputError(
                f"The {name} label map must have an integer dtype, but it is {label.dtype}: cast it first."
            )
    if fixed.shape != warped.shape or fixed.ndim not in (4, 5) or fixed.shape[1] != 1:
        raise InputError(
            f"The fixed labels have shape {tuple(fixed.shape)} and the warped ones {tuple(warped.shape)}; both must be "
            "(B, 1, H, W) or (B, 1, D, H, W) on one grid."
        )


def label_coder(
    labels: Sequence[int], maps: Sequence[Tensor], dtype: torch.dtype = torch.int64
) -> Callable[[Tensor], Tensor]:
    """Function that turns values of ``maps`` (N,) into 1 + their place in ``labels``, and every other value into 0.

    Raises:
        InputError: when ``labels`` is empty or repeats itself.
    """
    if not labels or len(set(labels)) != len(labels):
        raise InputError(f"labels must be distinct values and at least one, got {list(labels)}.")
    low = min((int(label.min()) for label in maps if label.dtype != torch.uint8 and label.numel()), default=0)
    high = max((int(label.max()) for label in maps if label.numel()), default=0)
    values, order = torch.tensor(list(labels), device=maps[0].device).sort()
    codes = (order + 1).to(dtype)
    if high > _TABLE or low < 0 or min(labels) < 0:
        return lambda found: _searched(found.long(), values, codes)
    table = torch.zeros(high + 1, dtype=dtype, device=values.device)
    table[values[values <= high]] = codes[values <= high]
    return lambda found: table.index_select(0, found.int())


def _searched(found: Tensor, values: Tensor, codes: Tensor) -> Tensor:
    """Code of each value found (N,) in the ascending ``values``, 0 where it is not among them."""
    index = torch.searchsorted(values, found).clamp_(max=len(values) - 1)
    return codes[index] * (values[index] == found)


def _joint_histogram(rows: Tensor, labels: Sequence[int], columns: Tensor | None = None) -> Tensor:
    """Voxel counts (L + 1, L + 1) over the codes of two maps, or (1, L + 1) of one; code 0 is every other value."""
    codes = len(labels) + 1
    coder = label_coder(labels, [rows] if columns is None else [rows, columns])
    size = codes if columns is None else codes * codes
    counts = torch.zeros(size, dtype=torch.int64, device=rows.device)
    one, other = rows.reshape(-1), None if columns is None else columns.reshape(-1)
    for start in range(0, one.numel(), _CHUNK):
        pair = coder(one[start : start + _CHUNK])
        if other is not None:
            pair = coder(other[start : start + _CHUNK]).add_(pair, alpha=codes)
        counts += torch.bincount(pair, minlength=size)
    return counts.view(-1, codes)

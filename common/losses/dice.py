# SPDX-License-Identifier: Apache-2.0
"""Overlap losses: Dice of soft class maps, and of a label map that a displacement field warps (no one-hot volume)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient
from common.losses.label_cells import LabelCells, corner_weights, interpolation_slopes, shares_of_labels
from common.spatial import warp

# Voxels handled at a time: their coordinates and indices stay in a core's cache; accelerators want few launches.
_CPU_SLAB = 1 << 17
_ACCELERATOR_SLAB = 1 << 24


class SoftDiceLoss(nn.Module):
    """``1 - mean over batch and classes of 2 sum(p t) / (sum(p) + sum(t) + eps)`` for soft class maps.

    EOIR's BinaryDice. A class that is absent from both scores 0 and so costs 1 / (number of classes).

    Args:
        include_background: whether channel 0 counts (it does in EOIR).
        eps: added to the denominator.
        squared: sum squares in the denominator (TransMorph, mmipt: ``2 sum(p t) / (sum(p^2) + sum(t^2) + eps)``).
    """

    def __init__(self, include_background: bool = True, eps: float = 1e-5, squared: bool = False) -> None:
        super().__init__()
        self.include_background = include_background
        self.eps = eps
        self.squared = squared

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare class maps.

        Args:
            pred: (B, classes, *spatial), values in [0, 1].
            target: the same shape, one-hot or soft.

        Returns:
            Scalar in [0, 1], float32 (float64 if an input is).

        Raises:
            InputError: if the shapes differ or no class is left.
        """
        if pred.shape != target.shape:
            raise InputError(
                f"SoftDiceLoss got pred of shape {tuple(pred.shape)} and target of shape {tuple(target.shape)}; "
                "pass class maps (batch, classes, *spatial) of one shape."
            )
        first = 0 if self.include_background else 1
        if pred.ndim < 3 or pred.shape[1] <= first:
            raise InputError(
                f"SoftDiceLoss got class maps of shape {tuple(pred.shape)}, which leaves no class to compare."
            )
        dtype = computing_dtype(pred, target)
        p, t = pred[:, first:].to(dtype).flatten(2), target[:, first:].to(dtype).flatten(2)
        overlap = (p * t).sum(-1)
        size = ((p * p).sum(-1) + (t * t).sum(-1)) if self.squared else (p.sum(-1) + t.sum(-1))
        return 1 - (2 * overlap / (size + self.eps)).mean()


class WarpedDiceLoss(nn.Module):
    """Dice loss between a warped moving label map and a fixed one, with the gradient to the field.

    Equals :class:`SoftDiceLoss` of p = linear warp (zeros outside the image) of the one-hot moving label and t =
    one-hot fixed label, in value and in gradient, without building either. Only cells (2**d neighbouring moving voxels)
    that hold more than one label move the loss, so the interpolation is done for voxels that land in such a cell and in
    no other. The gradient is exact and cannot be differentiated again.

    Args:
        num_classes: labels are 0 .. num_classes - 1; None for as many as the label maps of each call have.
        include_background: whether label 0 counts as a class.
        eps: added to the denominator.
        squared: sum squares in the denominator (TransMorph, LKU-Net, mmipt).

    Raises:
        InputError: if no class is left.
    """

    def __init__(
        self, num_classes: int | None, include_background: bool = True, eps: float = 1e-5, squared: bool = False
    ) -> None:
        super().__init__()
        if num_classes is not None and num_classes <= (0 if include_background else 1):
            raise InputError(f"WarpedDiceLoss got num_classes={num_classes}, which leaves no class to compare.")
        self.num_classes = num_classes
        self.include_background = include_background
        self.eps = eps
        self.squared = squared

    def forward(self, moving_label: Tensor, fixed_label: Tensor, ddf: Tensor) -> Tensor:
        """Compare ``moving_label`` at ``x + ddf(x)`` with ``fixed_label`` at ``x``.

        Args:
            moving_label: (B, 1, *spatial), integer dtype; its grid may differ in size from the fixed one. Or soft class
                maps (B, num_classes, *spatial) of floating dtype, which are warped as they are (coarse pyramid levels).
            fixed_label: the same form, on the grid of the ddf.
            ddf: (B, d, *spatial) in voxels, on the fixed grid.

        Returns:
            Scalar in [0, 1], float32 (float64 if ``ddf`` is).

        Raises:
            InputError: if shapes or dtypes do not fit or a label is not in 0 .. num_classes - 1.
        """
        if moving_label.is_floating_point() and fixed_label.is_floating_point():
            return self._compare_maps(moving_label, fixed_label, ddf)
        self._check_shapes(moving_label, fixed_label, ddf)
        num_classes = self.num_classes or 1 + max(int(label.max()) for label in (moving_label, fixed_label))
        codes = torch.uint8 if num_classes + 2 <= 256 else torch.int32
        moving = check_labels(moving_label, num_classes, "moving_label").to(codes)
        fixed = check_labels(fixed_label, num_classes, "fixed_label").to(codes)
        field = ddf.to(computing_dtype(ddf))
        gradient = torch.zeros(field.shape, dtype=field.dtype, device=field.device) if needs_gradient(field) else None
        value = field.new_zeros((), dtype=torch.float64)
        share = 1 / (field.shape[0] * max(num_classes - (not self.include_background), 1))
        with torch.no_grad(), torch.autocast(field.device.type, enabled=False):
            for b in range(field.shape[0]):
                cells = LabelCells(moving[b, 0], num_classes)
                sums = _class_sums(cells, fixed[b, 0], field[b], self.squared, with_mixed=gradient is not None)
                value += share * self._score(sums, share, None if gradient is None else gradient[b])
        return with_gradient((1 - value).to(field.dtype), [field], [gradient])

    def _score(self, sums: _ClassSums, share: float, gradient: Tensor | None) -> Tensor:
        """Sum of the classes' Dice; fills ``gradient``."""
        size = sums.warped + sums.fixed + self.eps
        # The code behind the last class stands for "outside" and belongs to no class, like an excluded background.
        counts = torch.ones_like(size)
        counts[-1] = 0
        if not self.include_background:
            counts[0] = 0
        dice = 2 * sums.overlap / size * counts
        if gradient is not None:
            assert sums.mixed is not None
            # d loss / d p = dice / size - 2 t / size, times the share; of squares 2 p dice / size.
            per_label = (dice / size * share).to(gradient.dtype)
            per_match = (2 / size * counts * share).to(gradient.dtype)
            for mixed in sums.mixed:
                gradient.flatten(1).index_copy_(1, mixed.voxels, mixed.slopes(per_label, per_match, self.squared))
        return dice.sum()

    def _compare_maps(self, moving: Tensor, fixed: Tensor, ddf: Tensor) -> Tensor:
        if self.num_classes is not None and moving.shape[1] != self.num_classes:
            raise InputError(
                f"WarpedDiceLoss with num_classes={self.num_classes} got floating maps of shape {tuple(moving.shape)}; "
                "pass integer label maps, or one soft map per class."
            )
        warped = warp(moving, ddf, padding_mode="zeros")
        return SoftDiceLoss(self.include_background, self.eps, self.squared)(warped, fixed)

    def _check_shapes(self, moving: Tensor, fixed: Tensor, ddf: Tensor) -> None:
        dims = ddf.ndim - 2
        if dims not in (2, 3) or ddf.shape[1] != dims:
            raise InputError(
                f"WarpedDiceLoss got ddf of shape {tuple(ddf.shape)}; pass (batch, d, *spatial) with d = 2 or 3."
            )
        if fixed.shape != (ddf.shape[0], 1, *ddf.shape[2:]):
            raise InputError(
                f"WarpedDiceLoss got fixed_label of shape {tuple(fixed.shape)} for a ddf of shape {tuple(ddf.shape)}; "
                "the label map needs one channel and the grid of the ddf."
            )
        if moving.ndim != ddf.ndim or moving.shape[:2] != fixed.shape[:2]:
            raise InputError(
                f"WarpedDiceLoss got moving_label of shape {tuple(moving.shape)} for a fixed_label of shape "
                f"{tuple(fixed.shape)}; both need one channel, the same batch size and as many axes."
            )


def check_labels(label: Tensor, num_classes: int, name: str) -> Tensor:
    """Return ``label`` if it holds integers in 0 .. num_classes - 1; else raise an InputError naming the value."""
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise InputError(f"{name} has dtype {label.dtype}; pass an integer label map.")
    low, high = (int(bound) for bound in torch.aminmax(label))
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise InputError(
            f"{name} contains the label {wrong}, but num_classes={num_classes} admits 0 to {num_classes - 1}."
        )
    return label


@dataclass(frozen=True)
class _MixedVoxels:
    """Voxels of the fixed grid that land in a cell of more than one label: the only ones that move the loss.

    Args:
        voxels: (points,), flat index in the fixed grid.
        fixed: (points,), fixed label.
        corners: (2**d, points), labels of the cell's corners.
        fraction: (d, points), position in the cell.
    """

    voxels: Tensor
    fixed: Tensor
    corners: Tensor
    fraction: Tensor

    def slopes(self, per_label: Tensor, per_match: Tensor, squared: bool) -> Tensor:
        """d loss / d ddf (d, points), from d loss / d weight = per_label[corner] - per_match[fixed] [corner == fixed].

        Args:
            per_label: one number per code, of the type of the field.
            per_match: likewise.
            squared: whether the first part is times 2 p of the corner's label.
        """
        values = per_label.index_select(0, self.corners.flatten().int()).view(self.corners.shape)
        if squared:
            values *= 2 * shares_of_labels(self.corners, corner_weights(self.fraction))
        values -= (self.corners == self.fixed) * per_match.index_select(0, self.fixed.int())
        return interpolation_slopes(values, self.fraction)


@dataclass(frozen=True)
class _ClassSums:
    """Sums over the voxels of one pair, per code (classes, then "outside"), in float64.

    Args:
        overlap: of p t.
        warped: of p, or of p^2.
        fixed: of t, which is t^2.
        mixed: what the gradient is made of, where it was asked for.
    """

    overlap: Tensor
    warped: Tensor
    fixed: Tensor
    mixed: tuple[_MixedVoxels, ...] | None


def _class_sums(cells: LabelCells, fixed: Tensor, ddf: Tensor, squared: bool, with_mixed: bool) -> _ClassSums:
    """Sums of one pair, slab by slab.

    Args:
        cells: of the moving labels.
        fixed: (*spatial), fixed labels.
        ddf: (d, *spatial) in voxels.
        squared: whether ``warped`` is of squares.
        with_mixed: whether ``mixed`` is kept for a gradient.
    """
    # A last bin takes what is not counted: cells that are mixed, labels that do not match.
    bins = cells.mixed + 1
    overlap, warped = ddf.new_zeros((2, bins), dtype=torch.float64)
    kept = []
    depth = max(1, (_CPU_SLAB if ddf.is_cpu else _ACCELERATOR_SLAB) // math.prod(fixed.shape[1:]))
    for start in range(0, fixed.shape[0], depth):
        slab = (fixed[start : start + depth], ddf[:, start : start + depth])
        mixed = _add_slab(cells, *slab, start, squared, overlap, warped)
        if with_mixed:
            kept.append(mixed)
    total = torch.bincount(fixed.flatten(), minlength=bins).double()
    codes = slice(0, cells.mixed)
    return _ClassSums(overlap[codes], warped[codes], total[codes], tuple(kept) if with_mixed else None)


def _add_slab(
    cells: LabelCells, fixed: Tensor, ddf: Tensor, start: int, squared: bool, overlap: Tensor, warped: Tensor
) -> _MixedVoxels:
    """Add the sums over the planes from ``start`` on to ``overlap`` and ``warped``, and return the mixed voxels."""
    bins, plane = len(warped), math.prod(fixed.shape[1:])
    points, cell = cells.locate(ddf, start)
    fixed, code = fixed.flatten(), cells.code(cell)
    warped += torch.bincount(code, minlength=bins)
    overlap += torch.bincount(torch.where(code == fixed, code, cells.mixed), minlength=bins)
    chosen = (code == cells.mixed).nonzero().flatten()
    cell, fixed = cell.index_select(0, chosen), fixed.index_select(0, chosen)
    fraction, corners = points.index_select(1, chosen).frac_(), cells.corners(cell)
    weights = corner_weights(fraction)
    sizes = weights * shares_of_labels(corners, weights) if squared else weights
    warped += torch.bincount(corners.flatten(), sizes.flatten().double(), bins)
    overlap += torch.bincount(fixed, (weights * (corners == fixed)).sum(0).double(), bins)
    return _MixedVoxels(chosen + start * plane, fixed, corners, fraction)

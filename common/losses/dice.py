# SPDX-License-Identifier: Apache-2.0
"""Overlap losses: Dice of soft class maps, and of a label map that a displacement field warps (no one-hot volume)."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient
from common.spatial import warp

# Voxels handled at a time: their coordinates and indices stay in a core's cache; accelerators want few launches.
_CPU_SLAB = 1 << 17
_ACCELERATOR_SLAB = 1 << 24
# Two voxels outside on each side: a sampled cell wholly outside exists for every position, so that clamping is exact.
_MARGIN = 2


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
        num_classes: labels are 0 .. num_classes - 1.
        include_background: whether label 0 counts as a class.
        eps: added to the denominator.

    Raises:
        InputError: if no class is left.
    """

    def __init__(self, num_classes: int, include_background: bool = True, eps: float = 1e-5) -> None:
        super().__init__()
        if num_classes <= (0 if include_background else 1):
            raise InputError(f"WarpedDiceLoss got num_classes={num_classes}, which leaves no class to compare.")
        self.num_classes = num_classes
        self.include_background = include_background
        self.eps = eps

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
        codes = torch.uint8 if self.num_classes + 2 <= 256 else torch.int32
        moving = check_labels(moving_label, self.num_classes, "moving_label").to(codes)
        fixed = check_labels(fixed_label, self.num_classes, "fixed_label").to(codes)
        field = ddf.to(computing_dtype(ddf))
        gradient = torch.zeros(field.shape, dtype=field.dtype, device=field.device) if needs_gradient(field) else None
        value = field.new_zeros((), dtype=torch.float64)
        share = 1 / (field.shape[0] * (self.num_classes - (not self.include_background)))
        with torch.no_grad(), torch.autocast(field.device.type, enabled=False):
            for b in range(field.shape[0]):
                pair = _LabelPair(moving[b, 0], fixed[b, 0], field[b], self.num_classes)
                value += share * self._score(pair, share, None if gradient is None else gradient[b])
        return with_gradient((1 - value).to(field.dtype), [field], [gradient])

    def _score(self, pair: _LabelPair, share: float, slope: Tensor | None) -> Tensor:
        """Sum of the classes' Dice; fills ``slope``."""
        overlap, warped, fixed = pair.sums(keep=slope is not None)
        size = warped + fixed + self.eps
        # The code behind the last class stands for "outside" and belongs to no class, like an excluded background.
        counts = torch.ones_like(size)
        counts[-1] = 0
        if not self.include_background:
            counts[0] = 0
        dice = 2 * overlap / size * counts
        if slope is not None:
            pair.write_gradient(slope, dice / size * share, 2 / size * counts * share)
        return dice.sum()

    def _compare_maps(self, moving: Tensor, fixed: Tensor, ddf: Tensor) -> Tensor:
        if moving.shape[1] != self.num_classes:
            raise InputError(
                f"WarpedDiceLoss with num_classes={self.num_classes} got floating maps of shape {tuple(moving.shape)}; "
                "pass integer label maps, or one soft map per class."
            )
        return SoftDiceLoss(self.include_background, self.eps)(warp(moving, ddf, padding_mode="zeros"), fixed)

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


class _LabelPair:
    """One moving and one fixed label map under one field: class sums, then the gradient."""

    def __init__(self, moving: Tensor, fixed: Tensor, ddf: Tensor, num_classes: int) -> None:
        self.outside, self.mixed = num_classes, num_classes + 1
        self.fixed, self.ddf = fixed, ddf
        self.sizes = moving.shape
        padded = moving.new_full([n + 2 * _MARGIN for n in moving.shape], self.outside)
        padded[tuple(slice(_MARGIN, _MARGIN + n) for n in moving.shape)] = moving
        self.labels = padded.flatten()
        self.strides = [math.prod(padded.shape[axis + 1 :]) for axis in range(padded.ndim)]
        self.cells = self._cell_codes(padded).flatten()
        # Corners in the order of nested loops over the axes, the last axis fastest.
        self.corners = [sum(c) for c in itertools.product(*((0, stride) for stride in self.strides))]
        self.kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def _cell_codes(self, padded: Tensor) -> Tensor:
        """Per cell (named by its lowest corner) its label, or ``mixed`` if its corners differ."""
        low = high = padded
        for axis, n in enumerate(padded.shape):
            low = torch.minimum(low.narrow(axis, 0, n - 1), low.narrow(axis, 1, n - 1))
            high = torch.maximum(high.narrow(axis, 0, n - 1), high.narrow(axis, 1, n - 1))
        codes = torch.full_like(padded, self.mixed)
        uniform = codes[tuple(slice(0, n - 1) for n in padded.shape)]
        uniform.copy_(torch.where(low == high, low, uniform))
        return codes

    def sums(self, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Per code (classes, then "outside"): sum of p t, of p and of t, in float64."""
        bins = self.outside + 1
        overlap, warped = self.ddf.new_zeros((2, bins + 1), dtype=torch.float64)
        plane = math.prod(self.fixed.shape[1:])
        depth = max(1, (_CPU_SLAB if self.ddf.is_cpu else _ACCELERATOR_SLAB) // plane)
        for start in range(0, self.fixed.shape[0], depth):
            self._add_slab(start, min(start + depth, self.fixed.shape[0]), overlap, warped, keep)
        total = torch.bincount(self.fixed.flatten(), minlength=bins).double()
        return overlap[:bins], warped[:bins], total

    def _add_slab(self, start: int, stop: int, overlap: Tensor, warped: Tensor, keep: bool) -> None:
        points, cell = self._locate(start, stop)
        fixed = self.fixed[start:stop].flatten()
        code = self.cells.index_select(0, cell)
        bins = self.mixed + 1
        warped += torch.bincount(code, minlength=bins)
        overlap += torch.bincount(torch.where(code == fixed, code, self.mixed), minlength=bins)
        chosen = (code == self.mixed).nonzero().flatten()
        cell, fixed = cell.index_select(0, chosen), fixed.index_select(0, chosen)
        fraction = points.index_select(1, chosen).frac_()
        corners = torch.stack([self.labels.index_select(0, cell + offset) for offset in self.corners])
        weights = _corner_weights(fraction)
        warped += torch.bincount(corners.flatten(), weights.flatten().double(), bins)
        agreement = (weights * (corners == fixed)).sum(0)
        overlap += torch.bincount(fixed, agreement.double(), bins)
        if keep:
            self.kept.append((chosen + start * math.prod(self.fixed.shape[1:]), fixed, corners, fraction))

    def _locate(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Positions in the padded moving map (d, voxels), >= 0, and the flat index of the cell that each lies in."""
        points = torch.empty_like(self.ddf[:, start:stop], memory_format=torch.contiguous_format)
        cell: Tensor | None = None
        for axis, n in enumerate(self.sizes):
            first, last = (start, stop) if axis == 0 else (0, self.fixed.shape[axis])
            steps = torch.arange(first + _MARGIN, last + _MARGIN, dtype=points.dtype, device=points.device)
            shape = [-1 if k == axis else 1 for k in range(len(self.sizes))]
            torch.add(self.ddf[axis, start:stop], steps.view(shape), out=points[axis])
            points[axis].nan_to_num_(nan=0.0).clamp_(0, n + _MARGIN)
            index = points[axis].to(torch.int32)
            cell = index.mul_(self.strides[axis]) if cell is None else cell.add_(index, alpha=self.strides[axis])
        assert cell is not None
        return points.flatten(1), cell.flatten()

    def write_gradient(self, slope: Tensor, per_label: Tensor, per_match: Tensor) -> None:
        """d loss / d ddf, from d loss / d weight = per_label[corner] - per_match[fixed] * [corner == fixed]."""
        per_label, per_match = per_label.to(slope.dtype), per_match.to(slope.dtype)
        rows = slope.view(slope.shape[0], -1)
        for voxels, fixed, corners, fraction in self.kept:
            values = per_label.index_select(0, corners.flatten().int()).view(corners.shape)
            values -= (corners == fixed) * per_match.index_select(0, fixed.int())
            rows.index_copy_(1, voxels, _interpolation_slopes(values, fraction))


def _corner_weights(fraction: Tensor) -> Tensor:
    """Linear weights (2**d, points) of a cell's corners, from the position (d, points) inside the cell."""
    weights = torch.ones_like(fraction[:1])
    for part in fraction:
        weights = torch.stack((weights * (1 - part), weights * part), dim=1).flatten(0, 1)
    return weights


def _interpolation_slopes(values: Tensor, fraction: Tensor) -> Tensor:
    """Derivative (d, points), to the position in the cell, of interpolated corner ``values`` (2**d, points)."""
    slopes: list[Tensor] = []
    for part in reversed(fraction.unbind()):
        low, high = values[0::2], values[1::2]
        slopes = [torch.lerp(slope[0::2], slope[1::2], part) for slope in slopes]
        slopes.insert(0, high - low)
        values = torch.lerp(low, high, part)
    return torch.cat(slopes)

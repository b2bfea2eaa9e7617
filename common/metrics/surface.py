# SPDX-License-Identifier: Apache-2.0
"""Distances between the surfaces of label maps: HD95 as Learn2Reg and LUMIR define it, and its relatives.

``monai.metrics.compute_hausdorff_distance(percentile=95)`` is another metric (eroded voxel edges, every voxel of equal
weight): on small shapes it gives 1 where the challenges' area-weighted percentile gives 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.checks import InputError
from common.metrics.overlap import check_label_pair, label_coder
from common.metrics.surface_elements import distances_to, neighbour_codes, quantile_by_area, surface_element_areas
from common.metrics.voxel_sizes import voxel_sizes


@dataclass(frozen=True)
class SurfaceDistances:
    """Surface elements of two masks, each with its area and its distance to the other surface.

    Attributes:
        distances: (elements of the first mask,), (elements of the second,): in the unit of the spacing.
        areas: the same shapes.
    """

    distances: tuple[NDArray[np.float64], NDArray[np.float64]]
    areas: tuple[NDArray[np.float64], NDArray[np.float64]]

    @property
    def empty(self) -> bool:
        """Whether one of the masks is empty."""
        return min(len(d) for d in self.distances) == 0

    def hausdorff(self, fraction: float = 0.95) -> float:
        """Larger of the two one-sided distances within which ``fraction`` of the area lies; inf if a mask is empty."""
        if self.empty:
            return float("inf")
        return max(quantile_by_area(d, a, fraction) for d, a in zip(self.distances, self.areas, strict=True))

    def average(self) -> tuple[float, float]:
        """Area-weighted mean distance (first to second, second to first); NaN if a mask is empty."""
        if self.empty:
            return float("nan"), float("nan")
        first, second = (float((d * a).sum() / a.sum()) for d, a in zip(self.distances, self.areas, strict=True))
        return first, second

    def surface_dice(self, tolerance: float) -> float:
        """Share of both surfaces' area that lies within ``tolerance`` of the other; NaN if a mask is empty."""
        if self.empty:
            return float("nan")
        within = sum(float(a[d <= tolerance].sum()) for d, a in zip(self.distances, self.areas, strict=True))
        return within / sum(float(a.sum()) for a in self.areas)


def surface_distances(first: Tensor, second: Tensor, spacing: Sequence[float] | None = None) -> SurfaceDistances:
    """Surface elements of two masks on one grid and their distances to each other; of a single slice the contours.

    Args:
        first: (*spatial), two or three axes, bool or 0/1.
        second: the same shape.
        spacing: voxel size along each array axis, default 1.

    Returns:
        The two lists of elements; empty lists for empty masks.

    Raises:
        InputError: when shapes differ, have one axis or more than three, or ``spacing`` does not fit.
    """
    if first.shape != second.shape or first.ndim not in (2, 3):
        raise InputError(
            f"The masks have shapes {tuple(first.shape)} and {tuple(second.shape)}; they must be one shape, "
            "(H, W) or (D, H, W)."
        )
    sizes = voxel_sizes(spacing, first.ndim)
    kept = _wide_axes(first.shape)
    masks = [(mask != 0).cpu().numpy().reshape([first.shape[k] for k in kept]) for mask in (first, second)]
    return _distances(masks[0], masks[1], tuple(sizes[k] for k in kept))


def label_surface_distances(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    moving: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    vanished: str = "infinite",
) -> list[list[SurfaceDistances | None]]:
    """Surface distances of every label, each computed inside the label's bounding box; of a single slice, contours.

    Args:
        warped: (B, 1, *spatial), integer labels.
        fixed: (B, 1, *spatial), integer labels.
        labels: label values.
        moving: the labels before warping, (B, 1, *spatial'); a label that it does not hold is skipped. Without it,
            such a label counts as lost by warping.
        spacing: voxel size along each array axis, default 1 (the challenges' HD95 is in voxels).
        vanished: what stands for a label that warping lost: "infinite" distance (Learn2Reg), or the unwarped "moving"
            label (EOIR's tables), which must then lie on the fixed grid.

    Returns:
        Per batch element and label the distances, or None where the label is missing in ``fixed`` or ``moving``.

    Raises:
        InputError: when maps, labels or spacing do not fit.
    """
    check_label_pair(warped, fixed)
    if vanished not in ("infinite", "moving") or (vanished == "moving" and moving is None):
        raise InputError(f'vanished is {vanished!r}; it must be "infinite", or "moving" together with moving labels.')
    if moving is not None and vanished == "moving":
        check_label_pair(moving, fixed)
    sizes = voxel_sizes(spacing, fixed.ndim - 2)
    maps = [fixed, warped] + ([] if moving is None else [moving])
    return [_of_one_pair([m[b] for m in maps], labels, sizes, vanished) for b in range(fixed.shape[0])]


def hd95_l2r(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    moving: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    vanished: str = "infinite",
) -> Tensor:
    """95th percentile Hausdorff distance by the rule of Learn2Reg and LUMIR.

    Args:
        warped: (B, 1, *spatial), integer labels.
        fixed: (B, 1, *spatial), integer labels.
        labels: label values.
        moving: (B, 1, *spatial'), unwarped; needed for the official figure, see :func:`label_surface_distances`.
        spacing: default 1 along every axis, which is what both challenges use whatever the voxel size.
        vanished: "infinite" (official) or "moving", see :func:`label_surface_distances`.

    Returns:
        (B, len(labels)), float64: NaN where skipped, inf where warping lost the label. Average with
        :func:`common.metrics.mean_over_labels`, which keeps the infinity, as the challenges do.
    """
    return hausdorff_per_label(warped, fixed, labels, moving, spacing, 0.95, vanished)


def hausdorff_per_label(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    moving: Tensor | None = None,
    spacing: Sequence[float] | None = None,
    fraction: float = 0.95,
    vanished: str = "infinite",
) -> Tensor:
    """Hausdorff distance at any ``fraction`` of the surface area, 1 for the maximum; otherwise as :func:`hd95_l2r`."""
    table = label_surface_distances(warped, fixed, labels, moving, spacing, vanished)
    return _tensor([[float("nan") if d is None else d.hausdorff(fraction) for d in row] for row in table], fixed)


def average_surface_distance(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    moving: Tensor | None = None,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Area-weighted mean surface distance, fixed to warped and warped to fixed.

    Returns:
        (B, len(labels), 2), float64; NaN where the label is skipped or was lost by warping.
    """
    table = label_surface_distances(warped, fixed, labels, moving, spacing)
    return _tensor([[(float("nan"),) * 2 if d is None else d.average() for d in row] for row in table], fixed)


def surface_dice(
    warped: Tensor,
    fixed: Tensor,
    labels: Sequence[int],
    tolerance: float,
    moving: Tensor | None = None,
    spacing: Sequence[float] | None = None,
) -> Tensor:
    """Share of both surfaces that lies within ``tolerance`` (unit of the spacing) of the other one.

    Returns:
        (B, len(labels)), float64 in [0, 1]; NaN where the label is skipped or was lost by warping.
    """
    table = label_surface_distances(warped, fixed, labels, moving, spacing)
    return _tensor([[float("nan") if d is None else d.surface_dice(tolerance) for d in row] for row in table], fixed)


def _wide_axes(shape: Sequence[int]) -> list[int]:
    """Axes that surfaces extend along: of a volume of one slice, whose surface would be its two faces, the plane."""
    kept = list(range(len(shape)))
    for axis in reversed(range(len(shape))):
        if shape[axis] == 1 and len(kept) > 2:
            kept.remove(axis)
    return kept


def _tensor(values: list[list[Any]], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def _of_one_pair(
    maps: list[Tensor], labels: Sequence[int], spacing: tuple[float, ...], vanished: str
) -> list[SurfaceDistances | None]:
    """Distances of every label of one pair; ``maps`` are fixed, warped and, if known, moving labels (1, *spatial)."""
    from scipy.ndimage import find_objects

    kept = _wide_axes(maps[0].shape[1:])
    spacing = tuple(spacing[k] for k in kept)
    coded, boxes = [], []
    for one in maps:
        coder = label_coder(labels, [one], torch.uint8 if len(labels) < 256 else torch.int32)
        shape = one.shape[1:]
        if shape == maps[0].shape[1:]:
            shape = torch.Size(shape[k] for k in kept)
        coded.append(coder(one.reshape(-1)).view(shape).cpu().numpy())
        boxes.append(find_objects(coded[-1], max_label=len(labels)))
    table: list[SurfaceDistances | None] = []
    for index in range(len(labels)):
        if boxes[0][index] is None or (len(maps) == 3 and boxes[2][index] is None):
            table.append(None)
            continue
        other = 2 if boxes[1][index] is None and vanished == "moving" else 1
        region = _union(boxes[0][index], boxes[other][index])
        table.append(_distances(coded[0][region] == index + 1, coded[other][region] == index + 1, spacing))
    return table


def _union(one: tuple[slice, ...], other: tuple[slice, ...] | None) -> tuple[slice, ...]:
    if other is None:
        return one
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def _distances(first: NDArray[np.bool_], second: NDArray[np.bool_], spacing: tuple[float, ...]) -> SurfaceDistances:
    codes = [neighbour_codes(mask) for mask in (first, second)]
    edges = [(c != 0) & (c != 2 ** (2**first.ndim) - 1) for c in codes]
    areas = surface_element_areas(spacing)
    return SurfaceDistances(
        (distances_to(edges[1], edges[0], spacing), distances_to(edges[0], edges[1], spacing)),
        (areas[codes[0][edges[0]]], areas[codes[1][edges[1]]]),
    )

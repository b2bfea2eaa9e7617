# SPDX-License-Identifier: Apache-2.0
"""The cells of a label map, 2**d neighbouring voxels, between which labels are interpolated like one-hot maps."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

# Two voxels outside on each side: a sampled cell wholly outside exists for every position, so that clamping is exact.
_MARGIN = 2


class LabelCells:
    """A label map and which of its cells hold one label only; unchanging.

    Cells and voxels are named by their flat index in the map with a margin of "outside"; a cell by its lowest corner.

    Args:
        labels: (*spatial), integers 0 .. num_classes - 1 of a dtype that holds num_classes + 1.
        num_classes: also the code of "outside"; ``num_classes + 1`` is the code of mixed cells.
    """

    def __init__(self, labels: Tensor, num_classes: int) -> None:
        self.outside, self.mixed = num_classes, num_classes + 1
        self.sizes = labels.shape
        padded = labels.new_full([n + 2 * _MARGIN for n in labels.shape], self.outside)
        padded[tuple(slice(_MARGIN, _MARGIN + n) for n in labels.shape)] = labels
        self._labels = padded.flatten()
        self._codes = self._cell_codes(padded).flatten()
        self._strides = [math.prod(padded.shape[axis + 1 :]) for axis in range(padded.ndim)]

    def _cell_codes(self, padded: Tensor) -> Tensor:
        low = high = padded
        for axis, n in enumerate(padded.shape):
            low = torch.minimum(low.narrow(axis, 0, n - 1), low.narrow(axis, 1, n - 1))
            high = torch.maximum(high.narrow(axis, 0, n - 1), high.narrow(axis, 1, n - 1))
        codes = torch.full_like(padded, self.mixed)
        uniform = codes[tuple(slice(0, n - 1) for n in padded.shape)]
        uniform.copy_(torch.where(low == high, low, uniform))
        return codes

    def code(self, cell: Tensor) -> Tensor:
        """The label of all corners of each cell (points,), or ``mixed``."""
        return self._codes.index_select(0, cell)

    def corners(self, cell: Tensor) -> Tensor:
        """Labels (2**d, points) of the corners, in the order of nested loops over the axes, the last axis fastest."""
        offsets = [sum(corner) for corner in itertools.product(*((0, stride) for stride in self._strides))]
        return torch.stack([self._labels.index_select(0, cell + offset) for offset in offsets])

    def locate(self, ddf: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Where the voxels of a slab land.

        Args:
            ddf: (d, *slab) in voxels, on the planes from ``start`` on of the first axis.
            start: first plane.

        Returns:
            Positions (d, voxels) in the map with its margin, >= 0, and the cell (voxels,) that each lies in.
        """
        points = torch.empty_like(ddf, memory_format=torch.contiguous_format)
        cell: Tensor | None = None
        for axis, n in enumerate(self.sizes):
            first = _MARGIN + (start if axis == 0 else 0)
            steps = torch.arange(first, first + ddf.shape[axis + 1], dtype=points.dtype, device=points.device)
            shape = [-1 if k == axis else 1 for k in range(len(self.sizes))]
            torch.add(ddf[axis], steps.view(shape), out=points[axis])
            points[axis].nan_to_num_(nan=0.0).clamp_(0, n + _MARGIN)
            index = points[axis].to(torch.int32)
            cell = index.mul_(self._strides[axis]) if cell is None else cell.add_(index, alpha=self._strides[axis])
        assert cell is not None
        return points.flatten(1), cell.flatten()


def corner_weights(fraction: Tensor) -> Tensor:
    """Linear weights (2**d, points) of a cell's corners, from the position (d, points) inside the cell."""
    weights = torch.ones_like(fraction[:1])
    for part in fraction:
        weights = torch.stack((weights * (1 - part), weights * part), dim=1).flatten(0, 1)
    return weights


def shares_of_labels(corners: Tensor, weights: Tensor) -> Tensor:
    """What all corners of a cell that have the label of each add up to (2**d, points), from labels and weights."""
    return torch.stack([(weights * (corners == label)).sum(0) for label in corners])


def interpolation_slopes(values: Tensor, fraction: Tensor) -> Tensor:
    """Derivative (d, points), to the position in the cell, of interpolated corner ``values`` (2**d, points)."""
    slopes: list[Tensor] = []
    for part in reversed(fraction.unbind()):
        low, high = values[0::2], values[1::2]
        slopes = [torch.lerp(slope[0::2], slope[1::2], part) for slope in slopes]
        slopes.insert(0, high - low)
        values = torch.lerp(low, high, part)
    return torch.cat(slopes)

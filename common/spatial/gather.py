# SPDX-License-Identifier: Apache-2.0
"""Linear sampling of many channels on the CPU: every voxel sums 2 ** d weighted rows of a table of features.

``grid_sample`` goes through the channels one by one and computes in normalised coordinates. With the channels of a
voxel side by side in memory the same sum is what ``embedding_bag`` is made for, several times faster. The gradient with
respect to the image is the transposed sum: with the pairs (voxel, corner) sorted by corner it is a gather again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Voxels at a time: their positions, corners and weights stay in the second-level cache.
PIECE = 2**14


def sample_channels(image: Tensor, ddf: Tensor, zeros: bool) -> Tensor:
    """``image`` at ``x + ddf(x)``, linear, without autograd.

    Args:
        image: (B, C, *spatial') on the CPU; channels-last spares a copy.
        ddf: (B, d, *spatial), in voxels of ``image``, of the same type.
        zeros: whether the image is 0 outside; otherwise its border continues.

    Returns:
        (B, C, *spatial), channels-last.
    """
    batch, channels = image.shape[:2]
    out = image.new_empty((batch, *ddf.shape[2:], channels))
    for b in range(batch):
        table, rows = _rows(image[b]), out[b].flatten(0, -2)
        for start, stop, axes in _pieces(ddf[b], image.shape[2:], zeros):
            index, weight = _corners(axes, image.shape[2:])
            rows[start:stop] = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    return out.movedim(-1, 1)


def sample_channels_backward(
    grad: Tensor, image: Tensor, ddf: Tensor, zeros: bool, on_image: bool, on_ddf: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of :func:`sample_channels` with respect to ``image`` (channels-last) and ``ddf``, where wanted."""
    batch, channels, *source = image.shape
    grad_image = image.new_empty((batch, *source, channels)) if on_image else None
    grad_ddf = torch.empty_like(ddf, memory_format=torch.contiguous_format) if on_ddf else None
    for b in range(batch):
        rows, table = _rows(grad[b]), _rows(image[b])
        count, corners = rows.shape[0], 2 ** ddf.shape[1]
        indices = torch.empty((count, corners), dtype=torch.int32) if on_image else None
        weights = ddf.new_empty((count, corners)) if on_image else None
        for start, stop, axes in _pieces(ddf[b], source, zeros):
            index, weight = _corners(axes, source)
            if indices is not None and weights is not None:
                indices[start:stop], weights[start:stop] = index, weight
            if grad_ddf is not None:
                on_weight = _on_weights(rows[start:stop], table, index)
                grad_ddf[b].flatten(1)[:, start:stop] = _chain(on_weight, axes)
        if grad_image is not None and indices is not None and weights is not None:
            grad_image[b].flatten(0, -2).copy_(_scatter(rows, indices, weights, math.prod(source)))
    return None if grad_image is None else grad_image.movedim(-1, 1), grad_ddf


class _Axis:
    """Along one axis: lower and upper index, their weights, and the derivatives of these by the displacement."""

    def __init__(self, position: Tensor, size: int, zeros: bool) -> None:
        if size == 1:
            # No extent to move in, as in `normalised_axis`.
            only, nowhere = torch.zeros_like(position, dtype=torch.int32), torch.zeros_like(position)
            self.index, self.weight, self.slope = (only, only), (nowhere + 1, nowhere), (nowhere, nowhere)
            return
        # Two voxels outside nothing is left to interpolate, and integers cannot overflow.
        clamped = position.clamp(-2, size + 1) if zeros else position.clamp(0, size - 1)
        low = clamped.floor()
        upper = clamped - low
        low = low.to(torch.int32)
        self.index = (low.clamp(0, size - 1), (low + 1).clamp(0, size - 1))
        if zeros:
            inside = [((i >= 0) & (i < size)).to(upper.dtype) for i in (low, low + 1)]
            self.weight = ((1 - upper) * inside[0], upper * inside[1])
            self.slope = (-inside[0], inside[1])
        else:
            moving = ((position > 0) & (position < size - 1)).to(upper.dtype)
            self.weight = (1 - upper, upper)
            self.slope = (-moving, moving)


def _rows(volume: Tensor) -> Tensor:
    """(C, *spatial) as a matrix (voxels, C)."""
    return volume.movedim(0, -1).reshape(-1, volume.shape[0]).contiguous()


def _pieces(ddf: Tensor, source: Sequence[int], zeros: bool) -> Iterator[tuple[int, int, list[_Axis]]]:
    """Range of voxels and sampling positions, slab after slab of one field (d, *spatial)."""
    shape = ddf.shape[1:]
    plane = math.prod(shape[1:])
    depth = max(PIECE // plane, 1)
    for first in range(0, shape[0], depth):
        last = min(first + depth, shape[0])
        axes = []
        for k, size in enumerate(source):
            identity = torch.arange(shape[k], dtype=ddf.dtype).view([-1 if j == k else 1 for j in range(len(shape))])
            identity = identity[first:last] if k == 0 else identity
            axes.append(_Axis((ddf[k, first:last] + identity).flatten(), size, zeros))
        yield first * plane, last * plane, axes


def _corners(axes: Sequence[_Axis], source: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Row of the table and weight of each corner, (voxels, 2 ** d) both."""
    index = torch.empty((axes[0].index[0].numel(), 2 ** len(axes)), dtype=torch.int32)
    weight = axes[0].weight[0].new_empty(index.shape)
    partial: list[tuple[Tensor | None, Tensor | None]] = [(None, None)]
    for axis, size in zip(axes[:-1], source[1:], strict=True):
        # Of the axes so far: the row times the size of the next axis, and the product of the weights.
        partial = [
            ((axis.index[side] if i is None else i + axis.index[side]) * size, _product(w, axis.weight[side]))
            for (i, w), side in itertools.product(partial, (0, 1))
        ]
    for corner, ((i, w), side) in enumerate(itertools.product(partial, (0, 1))):
        assert i is not None and w is not None
        torch.add(i, axes[-1].index[side], out=index[:, corner])
        torch.mul(w, axes[-1].weight[side], out=weight[:, corner])
    return index, weight


def _product(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a * b


def _on_weights(grad: Tensor, table: Tensor, index: Tensor) -> Tensor:
    """Derivative by each weight: the incoming gradient times the row of the table, (voxels, corners)."""
    count, corners = index.shape
    bags = torch.arange(count, dtype=torch.int32)
    flat = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, index.flatten(), bags * corners, bags.repeat_interleave(corners), 0
    )
    result: Tensor = flat.view(count, corners)
    return result


def _chain(on_weight: Tensor, axes: Sequence[_Axis]) -> Tensor:
    """From the corners' weights to the displacement (d, voxels)."""
    corners = on_weight.T.contiguous().unflatten(0, (2,) * len(axes))
    result = []
    for k in range(len(axes)):
        remaining = corners
        # The axes are summed away one by one, each with its weights; axis k with its slopes.
        for j, axis in enumerate(axes):
            low, high = axis.slope if j == k else axis.weight
            remaining = remaining[0] * low + remaining[1] * high
        result.append(remaining)
    return torch.stack(result)


def _scatter(rows: Tensor, indices: Tensor, weights: Tensor, size: int) -> Tensor:
    """Sum of ``weights[v, c] * rows[v]`` over all (v, c) that share a target ``indices[v, c]``, (size, C)."""
    corners = indices.shape[1]
    targets, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(targets, torch.arange(size, dtype=torch.int32))
    del targets
    weight = weights.flatten()[order]
    voxels = order.div_(corners, rounding_mode="floor")
    return F.embedding_bag(voxels, rows, starts, mode="sum", per_sample_weights=weight)

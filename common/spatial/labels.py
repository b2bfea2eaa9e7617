# SPDX-License-Identifier: Apache-2.0
"""Sampling label maps: the rule of the Learn2Reg challenges, and two others that some papers use instead."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from common.checks import InputError
from common.spatial.coordinates import check_ddf
from common.spatial.rounding import BORDER, TIE

_SLAB_VOXELS = 1 << 18
"""Voxels worked on at a time: double precision temporaries of this size stay in the processor's cache."""


def warp_labels(label: Tensor, ddf: Tensor, by_header: bool = False) -> Tensor:
    """Label of the nearest voxel at ``x + ddf(x)``, exactly as the Learn2Reg and LUMIR evaluations take it.

    These are the semantics of ``scipy.ndimage.map_coordinates(label, identity + ddf, order=0)`` in double precision:
    a coordinate is rounded half *up*, and a point with any coordinate below 0 or above n - 1, however little, gets
    label 0. ``warp(..., mode="nearest")`` differs in both: it rounds half to even, in float32, and clamps at the
    border. Along an axis of one voxel, which the challenges have not, a slice reaches half a voxel, as images do: no
    displacement would leave it its labels otherwise.

    Args:
        label: (B, 1, *spatial'), integer dtype, background 0.
        ddf: (B, d, *spatial), floating point, in voxels of ``label``.
        by_header: whether label map and field lie on two grids, so that rounding must not decide: what is beyond the
            border by :data:`common.spatial.rounding.BORDER` or below the middle between two voxels by ``TIE``
            counts as there.

    Returns:
        (B, 1, *spatial), dtype of ``label``.

    Raises:
        InputError: when ``label`` has a floating dtype or is no label map of the same batch.
        ValueError: when ``ddf`` is no displacement field.
    """
    _check_labels(label, ddf)
    source = _with_outside(label)
    warped = label.new_empty((ddf.shape[0], 1, *ddf.shape[2:]))
    for batch, start, stop in _slabs(ddf):
        flat = _nearest(_coordinates(ddf[batch], start, stop), label.shape[2:], by_header)
        torch.index_select(source[batch], 0, flat.flatten(), out=warped[batch, 0, start:stop].view(-1))
    return warped


def sample_labels_at(label: Tensor, points: Tensor, by_header: bool = False) -> Tensor:
    """Label of the nearest voxel at points, by the rule of :func:`warp_labels`.

    Args:
        label: (B, 1, *spatial), integer dtype, background 0.
        points: (B, N, d), positions in voxels, component k along array axis k.
        by_header: as there.

    Returns:
        (B, 1, N), dtype of ``label``.

    Raises:
        InputError: when ``label`` has a floating dtype or the shapes do not fit.
    """
    _check_integers(label)
    if points.ndim != 3 or label.shape[:2] != (points.shape[0], 1) or label.ndim != points.shape[2] + 2:
        raise InputError(
            f"The label map has shape {tuple(label.shape)} and the points {tuple(points.shape)}; pass (B, 1, *spatial) "
            "and (B, N, number of spatial axes)."
        )
    source, columns = _with_outside(label), points.detach().double().unbind(2)
    return source.gather(1, _nearest([column.clone() for column in columns], label.shape[2:], by_header))[:, None]


def warp_labels_linear(label: Tensor, ddf: Tensor) -> Tensor:
    """Label with the largest linear interpolation weight at ``x + ddf(x)``.

    Equals warping a one-hot map bilinearly (trilinearly) with zeros outside and taking the argmax, ties going to the
    smaller label, but without the one-hot map: only the labels of the 2^d corners can win. Dice values after this warp
    (TransMorph's IXI tables) are higher than after :func:`warp_labels`; never compare the two.

    Args:
        label: (B, 1, *spatial'), integer dtype, no negative values.
        ddf: (B, d, *spatial), floating point, in voxels of ``label``.

    Returns:
        (B, 1, *spatial), dtype of ``label``.

    Raises:
        InputError: when ``label`` has a floating dtype or is no label map of the same batch.
        ValueError: when ``ddf`` is no displacement field.
    """
    _check_labels(label, ddf)
    warped = label.new_empty((ddf.shape[0], 1, *ddf.shape[2:]))
    for batch, start, stop in _slabs(ddf):
        corners, weights = _corners(label[batch, 0], _coordinates(ddf[batch], start, stop))
        # Background wins unless some label of a corner weighs more: it is what an all-zero one-hot column gives.
        best = torch.zeros_like(corners[0])
        score = _votes(best, corners, weights)
        for corner in corners:
            votes = _votes(corner, corners, weights)
            wins = (votes > score) | ((votes == score) & (corner < best))
            best = torch.where(wins, corner, best)
            score = torch.where(wins, votes, score)
        warped[batch, 0, start:stop] = best
    return warped


def warp_labels_to_even(label: Tensor, ddf: Tensor) -> Tensor:
    """Label of the nearest voxel at ``x + ddf(x)`` as TensorFlow takes it: in float32, halves to the even neighbour.

    The rule that SynthMorph's training images are made by. A point with any coordinate below 0 or above n - 1, however
    little, gets label 0. Scans and results are warped by :func:`warp_labels`.

    Args:
        label: (B, 1, *spatial'), integer dtype, background 0.
        ddf: (B, d, *spatial), float32, in voxels of ``label``.

    Returns:
        (B, 1, *spatial), dtype of ``label``.

    Raises:
        InputError: when ``label`` has a floating dtype or is no label map of the same batch.
        ValueError: when ``ddf`` is no displacement field.
    """
    _check_labels(label, ddf)
    shape = label.shape[2:]
    index: Tensor | None = None
    inside: Tensor | None = None
    for axis, size in enumerate(shape):
        identity = torch.arange(ddf.shape[2 + axis], device=ddf.device, dtype=ddf.dtype)
        coordinate = ddf.detach()[:, axis] + identity.view([-1 if k == axis else 1 for k in range(len(shape))])
        within = (coordinate >= 0).logical_and_(coordinate <= size - 1)
        nearest = coordinate.round_().int()
        index = nearest if index is None else index.mul_(size).add_(nearest)
        inside = within if inside is None else inside.logical_and_(within)
    assert index is not None and inside is not None
    index.masked_fill_(inside.logical_not_(), label[0].numel())
    source = _with_outside(label)
    warped = [source[b].index_select(0, index[b].flatten()) for b in range(len(label))]
    return torch.stack(warped).view(label.shape[0], 1, *ddf.shape[2:])


def _with_outside(label: Tensor) -> Tensor:
    """(B, voxels + 1): one more element behind the last voxel is the label of every point outside."""
    return torch.nn.functional.pad(label.flatten(1), (0, 1))


def _nearest(coordinates: list[Tensor], shape: torch.Size, by_header: bool) -> Tensor:
    """Place of the nearest voxel in a flattened map, one behind its end for points outside; overwrites coordinates."""
    border, tie = (BORDER, TIE) if by_header else (0.0, 0.0)
    index: Tensor | None = None
    inside: Tensor | None = None
    for coordinate, size in zip(coordinates, shape, strict=True):
        reach = 0.5 + TIE if size == 1 else border
        within = (coordinate >= -reach).logical_and_(coordinate <= size - 1 + reach)
        nearest = coordinate.add_(0.5 + tie).floor_() if size > 1 else torch.zeros_like(coordinate)
        index = nearest if index is None else index.mul_(size).add_(nearest)
        inside = within if inside is None else inside.logical_and_(within)
    assert index is not None and inside is not None
    return index.masked_fill_(~inside, shape.numel()).long()


def _check_integers(label: Tensor) -> None:
    if label.is_floating_point() or label.is_complex():
        raise InputError(f"A label map must have an integer dtype, but this one is {label.dtype}: cast it first.")


def _check_labels(label: Tensor, ddf: Tensor) -> None:
    check_ddf(ddf)
    _check_integers(label)
    if label.ndim != ddf.ndim or label.shape[:2] != (ddf.shape[0], 1):
        raise InputError(
            f"The label map has shape {tuple(label.shape)}; with a ddf of shape {tuple(ddf.shape)} it must be "
            f"({ddf.shape[0]}, 1, *spatial) with {ddf.ndim - 2} spatial axes."
        )


def _slabs(ddf: Tensor) -> Iterator[tuple[int, int, int]]:
    """(batch index, first plane, end plane) over the field's first spatial axis."""
    depth = ddf.shape[2]
    planes = max(1, _SLAB_VOXELS * depth // max(1, ddf[0, 0].numel()))
    for batch in range(ddf.shape[0]):
        for start in range(0, depth, planes):
            yield batch, start, min(start + planes, depth)


def _coordinates(ddf: Tensor, start: int, stop: int) -> list[Tensor]:
    """``x + ddf(x)`` in double precision for the planes [start, stop) of a field (d, *spatial), one tensor per axis."""
    coordinates = []
    ddf = ddf.detach()
    for axis in range(ddf.shape[0]):
        first, last = (start, stop) if axis == 0 else (0, ddf.shape[1 + axis])
        identity = torch.arange(first, last, device=ddf.device, dtype=torch.float64)
        view = [-1 if k == axis else 1 for k in range(ddf.shape[0])]
        coordinates.append(ddf[axis, start:stop] + identity.view(view))
    return coordinates


def _corners(label: Tensor, coordinates: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Labels of the 2^d voxels around each point and their linear weights, 0 for corners outside."""
    lower = [coordinate.floor() for coordinate in coordinates]
    labels, weights = [], []
    for offsets in product((0, 1), repeat=label.ndim):
        weight = torch.ones_like(coordinates[0])
        index = torch.zeros_like(coordinates[0], dtype=torch.long)
        for axis, offset in enumerate(offsets):
            size = label.shape[axis]
            position = lower[axis] + offset
            weight = weight * (1 - (coordinates[axis] - position).abs())
            weight = weight * ((position >= 0) & (position <= size - 1))
            index = index * size + position.clamp(0, size - 1).long()
        labels.append(label.flatten()[index.flatten()].view(index.shape))
        weights.append(weight)
    return labels, weights


def _votes(candidate: Tensor, corners: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Sum of the weights of the corners whose label is ``candidate``."""
    votes = torch.zeros_like(weights[0])
    for corner, weight in zip(corners, weights, strict=True):
        votes += weight * (corner == candidate)
    return votes

# SPDX-License-Identifier: Apache-2.0
"""Linear interpolation at scattered points: differentiable any number of times, or with its derivative beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.spatial.coordinates import normalised_points
from common.spatial.warp import MODES, PADDINGS
from common.tracing import is_traced


def sample_at(image: Tensor, points: Tensor, padding_mode: str = "border") -> Tensor:
    """Sample ``image`` at points, linearly.

    The values are those of :func:`common.spatial.warp` for voxels that are displaced to the points, and computed in
    float32 (float64 for float64 input) whatever autocast says. Unlike it, this can be differentiated again
    (``create_graph=True``), as a penalty on a derivative asks for. Along one axis the interpolant is a straight line
    inside each cell, so that only mixed second derivatives differ from 0; where it has a kink, the derivative is that
    of the cell above, and 0 at the border of the image and outside with "border".

    Args:
        image: (B, C, *spatial), floating point, two or three spatial axes.
        points: (B, N, d), positions in voxels, component k along array axis k; voxel centres are at whole numbers.
        padding_mode: what lies outside ``image``: "border" (its nearest voxel) or "zeros".

    Returns:
        (B, C, N), float32 or float64.

    Raises:
        InputError: when the shapes do not fit or the padding is unknown.
    """
    dims = image.ndim - 2
    if dims not in (2, 3) or points.ndim != 3 or points.shape[::2] != (image.shape[0], dims):
        raise InputError(
            f"An image of shape {tuple(image.shape)} cannot be sampled at points of shape {tuple(points.shape)}; pass "
            "(B, C, *spatial) with two or three spatial axes, and (B, N, that number)."
        )
    if padding_mode not in PADDINGS:
        raise InputError(f"padding_mode is {padding_mode!r}; choose one of {list(PADDINGS)}.")
    dtype = torch.promote_types(torch.promote_types(image.dtype, points.dtype), torch.float32)
    grid = normalised_points(points.to(dtype), image.shape[2:])
    if is_traced():
        # By the name that exporters know.
        return F.grid_sample(image.to(dtype), grid, "bilinear", padding_mode, align_corners=True).flatten(2)
    # By these names, since `F.grid_sample` may choose cuDNN, which cannot be differentiated twice.
    if dims == 3:
        return torch.grid_sampler_3d(image.to(dtype), grid, MODES["bilinear"], PADDINGS[padding_mode], True).flatten(2)
    # Of NaN torch 2.13's backward pass makes a place outside of memory.
    lost = grid.isnan().any(3)
    grid = grid.masked_fill(lost[..., None], 0)
    result = torch.grid_sampler_2d(image.to(dtype), grid, MODES["bilinear"], PADDINGS[padding_mode], True)
    return result.masked_fill(lost[:, None], torch.nan).flatten(2)


def sample_with_derivative(image: Tensor, points: Tensor) -> Tensor:
    """Sample ``image`` at points as :func:`sample_at` with "border" does, with the derivative by the point.

    Values and derivatives can be differentiated, by the image and by the points.

    Args:
        image: (B, C, *spatial), floating point, two or three spatial axes.
        points: (B, N, d), positions in voxels.

    Returns:
        (1 + d, B, N, C): the value, then the derivative of the interpolant along each axis, where it has a kink that of
        the cell above, and 0 at the border and outside.
    """
    shape, jets = image.shape[2:], []
    for item, places in zip(image, points, strict=True):
        corners, weights = _jet_of_weights(places, shape)
        # All corners in one go: the gradient of each would be a whole image.
        values = item.flatten(1).index_select(1, corners.flatten()).unflatten(1, corners.shape)
        jets.append((weights @ values.permute(1, 2, 0)).transpose(0, 1))
    return torch.stack(jets, dim=1)


def _jet_of_weights(points: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Corners (N, 2 ** d) of the cells of points (N, d), and (N, 1 + d, 2 ** d): weights, and their derivatives."""
    dims = len(shape)
    last = points.new_tensor([size - 1 for size in shape])
    clamped = points.clamp(min=0).minimum(last)
    # Of NaN no integer can be made: its place is NaN in the first cell.
    first = clamped.detach().floor().minimum((last - 1).clamp_(min=0)).nan_to_num_()
    fraction, inside = clamped - first, ((points > 0) & (points < last)).to(points.dtype)
    pair, slope = torch.stack([1 - fraction, fraction], dim=2), torch.stack([-inside, inside], dim=2)
    # (N, 1 + d, d, 2): in the derivative along an axis its own pair is that of the slope.
    own = torch.eye(1 + dims, device=points.device, dtype=torch.bool)[:, 1:, None]
    along = torch.where(own, slope[:, None], pair[:, None])
    # The last axis is fastest; the upper neighbour of an axis of one voxel is the voxel itself.
    strides = [math.prod(shape[axis + 1 :]) for axis in range(dims)]
    # CUDA has no product of matrices of integers.
    lowest = (first.long() * first.new_tensor(strides, dtype=torch.long)).sum(1)
    steps, weights = [0], along[:, :, 0]
    for axis in range(dims):
        steps = [step + high * strides[axis] * (shape[axis] > 1) for step in steps for high in (0, 1)]
        if axis:
            weights = (weights[..., None] * along[:, :, axis, None]).flatten(2)
    return lowest[:, None] + lowest.new_tensor(steps), weights


def linear_with_derivative(rows: Tensor, shape: Sequence[int], points: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a vector image at points and their derivative; for solvers.

    Args:
        rows: (voxels, C), the image with its channels last and its spatial axes flattened.
        shape: spatial shape.
        points: (N, d), positions in voxels; outside, the value is that of the nearest point of the image.

    Returns:
        (N, C), and (N, C, d): the derivative of the interpolant along each axis, zero outside.
    """
    cells = _cells(points, shape)
    values = [rows.index_select(0, corner).to(points.dtype) for corner in _corners(cells, shape)]
    value, slopes = _interpolated(values, cells)
    return value, torch.stack(slopes, dim=2)


Cell = tuple[Tensor, Tensor, Tensor]
"""Along one axis: the lower neighbour of each point, the place between the neighbours, whether the image gets there."""


def _cells(points: Tensor, shape: Sequence[int]) -> list[Cell]:
    return [_cell(points[:, axis], size) for axis, size in enumerate(shape)]


def _cell(position: Tensor, size: int) -> Cell:
    """Lower neighbour (N,), place between the neighbours and whether the image reaches there, both (N, 1)."""
    clamped = position.clamp(0, size - 1)
    # Of NaN no integer can be made: its place is NaN in the first cell.
    first = clamped.floor().clamp_(max=max(size - 2, 0)).nan_to_num_()
    inside = (position >= 0) & (position <= size - 1) if size > 1 else torch.zeros_like(position, dtype=torch.bool)
    return first.long(), (clamped - first)[:, None], inside[:, None]


def _corners(cells: Sequence[Cell], shape: Sequence[int]) -> list[Tensor]:
    """Places of the 2 ** d neighbours in the flattened image, the last axis fastest."""
    corners = [torch.zeros_like(cells[0][0])]
    for (first, _, _), size in zip(cells, shape, strict=True):
        # The upper neighbour of an axis of one voxel is the voxel itself.
        corners = [corner * size + first + high for corner in corners for high in (0, int(size > 1))]
    return corners


def _interpolated(values: list[Tensor], cells: Sequence[Cell]) -> tuple[Tensor, list[Tensor]]:
    """The interpolant of the values at the corners, and its derivative along each axis."""
    # Axis after axis, last one first, neighbours are joined; the derivatives along the axes done so far go with them.
    slopes: list[list[Tensor]] = []
    for _, fraction, inside in reversed(cells):
        pairs = _paired(values)
        joined = [[torch.lerp(low, high, fraction) for low, high in _paired(slope)] for slope in slopes]
        slopes = [[(high - low) * inside for low, high in pairs], *joined]
        values = [torch.lerp(low, high, fraction) for low, high in pairs]
    return values[0], [slope[0] for slope in slopes]


def _paired(values: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(values[::2], values[1::2], strict=True))

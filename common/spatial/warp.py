# SPDX-License-Identifier: Apache-2.0
"""Sampling an image where a displacement field points."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.autograd import first_order
from common.spatial.coordinates import axis_factor, check_ddf, sampling_grid, traceable_sampling_grid
from common.spatial.gather import sample_channels, sample_channels_backward
from common.spatial.slabs import slab_ranges
from common.tracing import is_traced, without_autocast

MODES = {"bilinear": 0, "nearest": 1}
PADDINGS = {"zeros": 0, "border": 1}
# On the CPU, from this many channels on, summing rows of channels beats `grid_sample`.
MANY_CHANNELS = 8
# Its gradients, which sort the corners, from more on.
MANY_CHANNELS_BACKWARD = 24
_GRADIENT_BYTES = 1 << 28
"""Memory for the gradients of an image that threads sum up side by side."""


def warp(image: Tensor, ddf: Tensor, mode: str = "bilinear", padding_mode: str = "border") -> Tensor:
    """Sample ``image`` at ``x + ddf(x)`` for every voxel ``x`` of the displacement field's grid.

    The convention is MONAI's ``Warp``: voxels, channel k along array axis k, ``align_corners=True``. Computed in
    float32 (float64 for float64 input) whatever autocast says. For the backward pass only the two inputs are kept: the
    sampling grid is made again, which costs less than storing it. It can be differentiated once; for derivatives of
    derivatives there is :func:`common.spatial.sample_at`.

    Args:
        image: (B, C, *spatial'), floating point.
        ddf: (B, d, *spatial), in voxels of ``image``.
        mode: "bilinear" (linear in two or three dimensions) or "nearest".
        padding_mode: what lies outside ``image``: "border" (its nearest voxel) or "zeros".

    Returns:
        (B, C, *spatial), float32 or float64.

    Raises:
        ValueError: when shapes, mode or padding do not fit.
        InputError: in the backward pass, when it is to be differentiated again (``create_graph=True``).
    """
    check_ddf(ddf, image)
    if mode not in MODES or padding_mode not in PADDINGS:
        raise ValueError(f"mode must be one of {list(MODES)} and padding_mode one of {list(PADDINGS)}.")
    dtype = torch.promote_types(torch.promote_types(image.dtype, ddf.dtype), torch.float32)
    with without_autocast(image):
        image, ddf = image.to(dtype), ddf.to(dtype)
        if is_traced():
            grid = traceable_sampling_grid(ddf, image.shape[2:])
            return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=True)
        result: Tensor = _Warp.apply(image, ddf, MODES[mode], PADDINGS[padding_mode])
        return result


def compose(outer: Tensor, inner: Tensor, padding_mode: str = "border") -> Tensor:
    """The displacement of ``x -> y + outer(y)`` with ``y = x + inner(x)``.

    Warping by the composition equals warping by ``outer`` first and the result by ``inner`` (up to interpolation).

    Args:
        outer: (B, d, *spatial), sampled where ``inner`` points.
        inner: (B, d, *spatial).
        padding_mode: see :func:`warp`; "zeros" lets ``outer`` vanish outside the image.

    Returns:
        (B, d, *spatial): ``inner(x) + outer(x + inner(x))``.
    """
    return inner + warp(outer, inner, padding_mode=padding_mode)


def _slabs(image: Tensor, ddf: Tensor, values: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """A few planes of a field at a time, so that its sampling grid never is in memory as a whole.

    Args:
        image: (B, C, *spatial'), that is sampled.
        ddf: (B, d, *spatial).
        values: (B, C, *spatial), beside the field.

    Yields:
        Image, sampling grid and values of the same batch size, and the planes that they are of. CPU kernels run one
        batch element per thread, so that a single element comes plane by plane.
    """
    # There is work for all threads.
    for start, stop in slab_ranges(0, ddf.shape[2], ddf[:, 0, 0].numel() // torch.get_num_threads()):
        planes, parts = slice(start, stop), stop - start if len(ddf) == 1 else 1
        grid = sampling_grid(ddf, image.shape[2:], planes)
        yield *_as_batch(image, grid, values[:, :, planes], parts), planes


def _as_batch(image: Tensor, grid: Tensor, values: Tensor, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where there are parts, the first axis of a single element cut into so many, as a batch; views."""
    if parts == 1:
        return image, grid, values
    grids = grid.view(parts, grid.shape[1] // parts, *grid.shape[2:])
    return image.expand(parts, *image.shape[1:]), grids, values.unflatten(2, (parts, -1))[0].transpose(0, 1)


def _scatters(image: Tensor, ddf: Tensor) -> int:
    """How many parts of one size to cut the first axis into where the gradient of the image is wanted.

    Each has a gradient of the whole image for itself, so that there are no more of them than threads, and only as many
    as fit into memory; it is worth it only where the gradient is small.
    """
    threads, depth = torch.get_num_threads(), ddf.shape[2]
    if ddf.device.type != "cpu" or ddf.shape[0] != 1 or threads == 1 or depth == 0:
        return 1
    most = min(threads, _GRADIENT_BYTES // max(1, image.nbytes)) if image.shape[1] <= ddf.shape[1] else 1
    return max((n for n in range(1, most + 1) if depth % n == 0), default=1)


def _gathers(image: Tensor, mode: int, least: int = MANY_CHANNELS) -> bool:
    return image.device.type == "cpu" and mode == MODES["bilinear"] and image.shape[1] >= least


class _Warp(torch.autograd.Function):
    """``grid_sample`` of an identity grid plus a displacement that stores no grid."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, ddf: Tensor, mode: int, padding: int) -> Tensor:
        ctx.save_for_backward(image, ddf)
        ctx.mode, ctx.padding = mode, padding
        if _gathers(image, mode):
            return sample_channels(image, ddf, padding == PADDINGS["zeros"])
        return _sampled(image, ddf, mode, padding)

    @staticmethod
    @first_order("A warp", "common.spatial.sample_at")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, ddf = ctx.saved_tensors
        return *warp_backward(grad, image, ddf, ctx.mode, ctx.padding, *ctx.needs_input_grad[:2]), None, None


def _sampled(image: Tensor, ddf: Tensor, mode: int, padding: int) -> Tensor:
    """``grid_sample``; on the CPU slab by slab, of a single element plane by plane."""
    sample = torch.grid_sampler_2d if ddf.shape[1] == 2 else torch.grid_sampler_3d
    if ddf.device.type != "cpu":
        return sample(image, sampling_grid(ddf, image.shape[2:]), mode, padding, True)
    result = image.new_empty((*image.shape[:2], *ddf.shape[2:]))
    for source, grid, part, _ in _slabs(image, ddf, result):
        part.copy_(sample(source, grid, mode, padding, True))
    return result


def warp_backward(
    grad: Tensor, image: Tensor, ddf: Tensor, mode: int, padding: int, need_image: bool, need_ddf: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of a warp with respect to image and displacement, where wanted; without autograd.

    Args:
        grad: (B, C, *spatial), gradient of the warped image.
        image: (B, C, *spatial').
        ddf: (B, d, *spatial), in voxels of ``image``.
        mode: one of the values of :data:`MODES`.
        padding: one of the values of :data:`PADDINGS`.
        need_image: whether the first one is wanted.
        need_ddf: whether the second one is wanted.
    """
    if mode == MODES["nearest"] and not need_image:
        return None, torch.zeros_like(ddf) if need_ddf else None
    if _gathers(image, mode, MANY_CHANNELS_BACKWARD):
        return sample_channels_backward(grad, image, ddf, padding == PADDINGS["zeros"], need_image, need_ddf)
    if ddf.device.type == "cpu" and not need_image:
        return None, _grad_of_slabs(grad, image, ddf, mode, padding)
    parts = _scatters(image, ddf)
    source, grid, grad = _as_batch(image, sampling_grid(ddf, image.shape[2:]), grad, parts)
    grad_image, grad_grid = _grid_backward(grad, source, grid, mode, padding, [need_image, need_ddf])
    if parts > 1 and need_image:
        grad_image = grad_image.sum(0, keepdim=True)
    grad_ddf = torch.empty_like(ddf) if need_ddf else None
    if grad_ddf is not None:
        _chain(grad_grid, image, grad_ddf)
    return grad_image if need_image else None, grad_ddf


def _grad_of_slabs(grad: Tensor, image: Tensor, ddf: Tensor, mode: int, padding: int) -> Tensor:
    """Gradient of the displacement alone, slab by slab as :func:`_sampled`."""
    result = torch.empty_like(ddf)
    for source, grid, part, planes in _slabs(image, ddf, grad):
        _, grad_grid = _grid_backward(part, source, grid, mode, padding, [False, True])
        _chain(grad_grid, image, result[:, :, planes])
    return result


def _grid_backward(
    grad: Tensor, image: Tensor, grid: Tensor, mode: int, padding: int, wanted: list[bool]
) -> tuple[Tensor, Tensor]:
    """Gradients of ``grid_sample`` to image and grid, where wanted."""
    if grid.shape[-1] == 3:
        found: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_3d_backward(
            grad, image, grid, mode, padding, True, wanted
        )
        return found
    # Of NaN torch 2.13 makes a place outside of memory.
    lost = grid.isnan()
    grid.masked_fill_(lost, 0)
    on_image, on_grid = torch.ops.aten.grid_sampler_2d_backward(grad, image, grid, mode, padding, True, wanted)
    return on_image, on_grid.masked_fill_(lost, torch.nan) if wanted[1] else on_grid


def _chain(grad_grid: Tensor, image: Tensor, out: Tensor) -> None:
    """Chain rule through the normalisation of the grid; channels back in array-axis order."""
    grad_grid = grad_grid.view(*out.shape[:1], *out.shape[2:], -1)
    for k in range(out.shape[1]):
        torch.mul(grad_grid[..., out.shape[1] - 1 - k], axis_factor(image.shape[2 + k]), out=out[:, k])

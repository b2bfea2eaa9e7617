# SPDX-License-Identifier: Apache-2.0
"""Sampling an image where a displacement field points."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.autograd import first_order
from common.spatial.coordinates import axis_factor, check_ddf, sampling_grid, traceable_sampling_grid
from common.spatial.gather import sample_channels, sample_channels_backward

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
    with torch.autocast(image.device.type, enabled=False):
        image, ddf = image.to(dtype), ddf.to(dtype)
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
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


def _slabs(image: Tensor, ddf: Tensor, scatters: bool = False) -> int:
    """How many slabs of one size to cut the first axis into: CPU kernels run one batch element per thread.

    Slabs that only read the image may be single planes. Each that scatters has a gradient of the whole image for
    itself, so that there are no more of them than threads, and only as many as fit into memory.
    """
    threads, depth = torch.get_num_threads(), ddf.shape[2]
    if ddf.device.type != "cpu" or ddf.shape[0] != 1 or threads == 1 or depth == 0:
        return 1
    if not scatters:
        return depth
    # Worth it only where the gradient is small.
    most = min(threads, _GRADIENT_BYTES // max(1, image.nbytes)) if image.shape[1] <= ddf.shape[1] else 1
    return max((n for n in range(1, most + 1) if depth % n == 0), default=1)


def _as_batch(grid: Tensor, slabs: int) -> Tensor:
    return grid.view(slabs, grid.shape[1] // slabs, *grid.shape[2:])


def _unbatch(result: Tensor) -> Tensor:
    """(slabs, C, D / slabs, ...) back to (1, C, D, ...)."""
    slabs, channels, depth = result.shape[:3]
    return result.transpose(0, 1).reshape(1, channels, slabs * depth, *result.shape[3:])


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
        grid = sampling_grid(ddf, image.shape[2:])
        sample = torch.grid_sampler_2d if ddf.shape[1] == 2 else torch.grid_sampler_3d
        slabs = _slabs(image, ddf)
        if slabs == 1:
            return sample(image, grid, mode, padding, True)
        return _unbatch(sample(image.expand(slabs, *image.shape[1:]), _as_batch(grid, slabs), mode, padding, True))

    @staticmethod
    @first_order("A warp", "common.spatial.sample_at")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        image, ddf = ctx.saved_tensors
        return *warp_backward(grad, image, ddf, ctx.mode, ctx.padding, *ctx.needs_input_grad[:2]), None, None


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
    grid = sampling_grid(ddf, image.shape[2:])
    if ddf.shape[1] == 2:
        # Of NaN torch 2.13 makes a place outside of memory.
        lost = grid.isnan()
        grid.masked_fill_(lost, 0)
    aten = torch.ops.aten
    backward = aten.grid_sampler_2d_backward if ddf.shape[1] == 2 else aten.grid_sampler_3d_backward
    slabs = _slabs(image, ddf, scatters=need_image)
    if slabs > 1:
        depth = grad.shape[2] // slabs
        grad = grad.view(grad.shape[1], slabs, depth, *grad.shape[3:]).transpose(0, 1)
        image, grid = image.expand(slabs, *image.shape[1:]), _as_batch(grid, slabs)
    grad_image, grad_grid = backward(grad, image, grid, mode, padding, True, [need_image, need_ddf])
    if slabs > 1 and need_image:
        grad_image = grad_image.sum(0, keepdim=True)
    if need_ddf and ddf.shape[1] == 2:
        grad_grid = grad_grid.masked_fill(lost.view_as(grad_grid), torch.nan)
    return grad_image if need_image else None, _grad_ddf(grad_grid, image, ddf) if need_ddf else None


def _grad_ddf(grad_grid: Tensor, image: Tensor, ddf: Tensor) -> Tensor:
    """Chain rule through the normalisation of the grid; channels back in array-axis order."""
    grad_grid = grad_grid.view(*ddf.shape[:1], *ddf.shape[2:], -1)
    grad = torch.empty_like(ddf)
    for k in range(ddf.shape[1]):
        torch.mul(grad_grid[..., ddf.shape[1] - 1 - k], axis_factor(image.shape[2 + k]), out=grad[:, k])
    return grad

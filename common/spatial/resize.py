# SPDX-License-Identifier: Apache-2.0
"""Images and displacement fields on grids of another size over the same extent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial.coordinates import check_ddf, of_axes
from common.spatial.gaussian import gaussian_filter
from common.tracing import same_size

_SHRINKING_SIGMA = 0.4
"""Of the blur before an image shrinks, in voxels of what it shrinks to."""
LINEAR = {2: "bilinear", 3: "trilinear"}


def resize_image(image: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """Resample an image corner to corner (``align_corners=True``).

    Args:
        image: (B, C, *spatial) with two or three spatial axes.
        size: new spatial shape.
        mode: "bilinear" (linear in two or three dimensions) or "nearest" (same corner-to-corner geometry, any dtype).

    Returns:
        (B, C, *size).

    Raises:
        ValueError: for another number of axes or an unknown mode.
    """
    dims = image.ndim - 2
    if dims not in LINEAR or len(size) != dims:
        raise ValueError(f"image of shape {tuple(image.shape)} cannot be resized to {tuple(size)}.")
    if same_size(size, image.shape[2:]):
        return image
    if mode == "bilinear":
        if torch.compiler.is_compiling():
            return _resized_traceably(image, size)
        return F.interpolate(image, size=tuple(size), mode=LINEAR[dims], align_corners=True)
    if mode != "nearest":
        raise ValueError(f"mode is {mode!r}; expected 'bilinear' or 'nearest'.")
    for axis, (old, new) in enumerate(zip(image.shape[2:], size, strict=True), start=2):
        positions = torch.arange(new, device=image.device, dtype=torch.float64) * ((old - 1) / max(new - 1, 1))
        image = image.index_select(axis, (positions + 0.5).floor().long())
    return image


def _resized_traceably(image: Tensor, size: Sequence[int]) -> Tensor:
    """The same, axis after axis, for any size: torch's own form asks for the sizes that are one."""
    for axis, (old, new) in enumerate(zip(image.shape[2:], size, strict=True), start=2):
        if same_size([old], [new]):
            continue
        position = torch.arange(new, device=image.device, dtype=torch.float32) * ((old - 1) / (new - 1 + 1 // new))
        low = position.floor()
        lower, upper = (image.index_select(axis, i.long()) for i in (low, (low + 1).clamp(max=old - 1)))
        weight = (position - low).view([-1 if k == axis else 1 for k in range(image.ndim)])
        image = torch.lerp(lower, upper, weight.to(image.dtype))
    return image


def shrunk_image(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image on a coarser grid: blurred along the axes that shrink, then resampled corner to corner.

    Args:
        image: (B, C, *spatial), floating point.
        size: new spatial shape.
    """
    for axis, (old, new) in enumerate(zip(image.shape[2:], size, strict=True)):
        if new < old:
            image = gaussian_filter(image, _SHRINKING_SIGMA * old / new, [axis], inside=True)
    return resize_image(image, size)


def resize_ddf(ddf: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a displacement field corner to corner and express it in voxels of the new grid.

    Args:
        ddf: (B, d, *spatial), in voxels of its grid.
        size: new spatial shape.

    Returns:
        (B, d, *size); component k is multiplied by (size[k] - 1) / (spatial[k] - 1), the ratio of the voxel sizes.
        An axis of one voxel keeps its values. Float32 at least.

    Raises:
        ValueError: when ``ddf`` is no displacement field or ``size`` has another number of axes.
    """
    check_ddf(ddf)
    if len(size) != ddf.shape[1]:
        raise ValueError(f"ddf of shape {tuple(ddf.shape)} cannot be resized to {tuple(size)}.")
    ddf = ddf.to(torch.promote_types(ddf.dtype, torch.float32))
    return resize_image(ddf, size) * voxel_ratios(ddf.shape[2:], size, ddf).view(1, -1, *[1] * len(size))


def voxel_ratios(old: Sequence[int], new: Sequence[int], like: Tensor) -> Tensor:
    """Voxels of a grid of size ``new`` per voxel of one of size ``old`` that covers the same extent corner to corner.

    Args:
        old: spatial shape.
        new: spatial shape.
        like: tensor whose type and device the result has.

    Returns:
        (d,); 1 along an axis of one voxel.
    """
    # Arithmetic alone, see `axis_factor`.
    factors = []
    for o, n in zip(old, new, strict=True):
        several = (1 - 1 // o) * (1 - 1 // n)
        factors.append(several * (n - 1) / (o - 1 + 1 // o) + 1 - several)
    return of_axes(factors, like)

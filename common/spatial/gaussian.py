# SPDX-License-Identifier: Apache-2.0
"""Gaussian smoothing of images and fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial.slabs import slab_ranges
from common.tracing import is_traced

_REACH = 3
"""Standard deviations to where the window is cut off."""


def gaussian_filter(values: Tensor, sigma: float, axes: Sequence[int] | None = None, inside: bool = False) -> Tensor:
    """Smooth along spatial axes.

    Each tap of the window is one pass over memory, which for the short windows of a registration is several times as
    fast as a convolution on the CPU. Can be differentiated.

    Args:
        values: (B, C, *spatial), floating point.
        sigma: standard deviation in voxels; 0 leaves the values as they are. The window ends at three of them and has a
            sum of 1.
        axes: spatial axes to smooth along, the first is 0; None for all.
        inside: whether the part of the window that is inside counts as all of it; otherwise there are zeros outside.
    """
    if sigma == 0:
        return values
    taps = _taps(sigma)
    traced = is_traced()
    for axis in range(2, values.ndim) if axes is None else [2 + axis for axis in axes]:
        values = (_traceably_smoothed if traced else _smoothed)(values, taps, axis, inside)
    return values


def gaussian_filter_(values: Tensor, sigma: float, inside: bool = False) -> Tensor:
    """:func:`gaussian_filter` along all axes, in place and without a graph.

    On the CPU a part of a volume at a time, which stays in the cache meanwhile: half the time, and no second volume.

    Args:
        values: (B, C, *spatial), floating point.
        sigma: as there.
        inside: as there.

    Returns:
        The values.
    """
    if values.device.type != "cpu":
        return values.copy_(gaussian_filter(values, sigma, inside=inside))
    taps = _taps(sigma) if sigma else []
    for image in (channel for item in values for channel in item if taps):
        for planes in _parts(image, 0):
            for axis in range(1, image.ndim):
                planes.copy_(_smoothed(planes, taps, axis, inside))
        for lines in _parts(image, 1):
            lines.copy_(_smoothed(lines, taps, 0, inside))
    return values


def _parts(image: Tensor, axis: int) -> Iterator[Tensor]:
    """Views of an image, cut across an axis."""
    size = image.shape[axis]
    for start, stop in slab_ranges(0, size, image.numel() // max(1, size)):
        yield image.narrow(axis, start, stop - start)


def _smoothed(values: Tensor, taps: Sequence[float], axis: int, inside: bool) -> Tensor:
    size = values.shape[axis]
    smooth = values * taps[0]
    for offset, tap in enumerate(taps[1:size], start=1):
        kept = size - offset
        smooth.narrow(axis, 0, kept).add_(values.narrow(axis, offset, kept), alpha=tap)
        smooth.narrow(axis, offset, kept).add_(values.narrow(axis, 0, kept), alpha=tap)
    return _of_what_is_inside(smooth, taps, axis) if inside else smooth


def _taps(sigma: float) -> list[float]:
    """The window from its middle to one end."""
    reach = max(1, round(_REACH * sigma))
    # Numbers of Python: a network that is exported would work out those of a tensor for every pair.
    side = [math.exp(-0.5 * (place / sigma) ** 2) for place in range(reach + 1)]
    total = side[0] + 2 * sum(side[1:])
    return [value / total for value in side]


def _traceably_smoothed(values: Tensor, taps: Sequence[float], axis: int, inside: bool) -> Tensor:
    """:func:`_smoothed` as a convolution: in an exported network, slices would keep the size of the export."""
    along = [-1 if k == axis else 1 for k in range(values.ndim)]
    window = torch.tensor([*taps[:0:-1], *taps], dtype=values.dtype, device=values.device).view(along)
    convolve = F.conv2d if values.ndim == 4 else F.conv3d

    def smooth(signal: Tensor) -> Tensor:
        padding = [len(taps) - 1 if k == axis else 0 for k in range(2, values.ndim)]
        return convolve(signal.flatten(0, 1)[:, None], window, padding=padding).view(signal.shape)

    return smooth(values) / smooth(torch.ones_like(values)) if inside else smooth(values)


def _of_what_is_inside(smooth: Tensor, taps: Sequence[float], axis: int) -> Tensor:
    """Values, in place, as if the part of the window that is inside were all of it."""
    size, reach = smooth.shape[axis], len(taps) - 1
    share = _share(taps, size, smooth, axis)
    # Elsewhere all of it is inside, and division takes long.
    for start, length in [(0, size)] if size <= 2 * reach else [(0, reach), (size - reach, reach)]:
        smooth.narrow(axis, start, length).div_(share.narrow(axis, start, length))
    return smooth


def _share(taps: Sequence[float], size: int, like: Tensor, axis: int) -> Tensor:
    """Of the window around each voxel of a line the sum of the taps that are inside."""
    share = torch.full([size], taps[0], dtype=like.dtype, device=like.device)
    for offset, tap in enumerate(taps[1:size], start=1):
        share[: size - offset] += tap
        share[offset:] += tap
    return share.view([-1 if k == axis else 1 for k in range(like.ndim)])

# SPDX-License-Identifier: Apache-2.0
"""Voxel coordinates and the normalised sampling grid that ``grid_sample`` wants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_ALL = slice(None)


def identity_grid(
    spatial_shape: Sequence[int], device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Voxel coordinates of every voxel centre.

    Args:
        spatial_shape: (H, W) or (D, H, W).
        device: where the grid is made.
        dtype: floating type; below float32, coordinates beyond 256 are not exact.

    Returns:
        (1, d, *spatial_shape); channel k holds the index along array axis k.
    """
    axes = [torch.arange(n, device=device, dtype=dtype) for n in spatial_shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).unsqueeze(0)


def check_ddf(ddf: Tensor, image: Tensor | None = None) -> None:
    """Refuse a tensor that is no displacement field, or one that does not belong to ``image``.

    Args:
        ddf: expected to be (B, d, *spatial) with d = 2 or 3 spatial axes.
        image: when given, expected to be (B, C, *spatial') with the same B and the same number of axes.

    Raises:
        ValueError: with the offending shapes.
    """
    dims = ddf.ndim - 2
    if dims not in (2, 3) or ddf.shape[1] != dims:
        raise ValueError(f"ddf has shape {tuple(ddf.shape)}; expected (B, 2, H, W) or (B, 3, D, H, W).")
    if image is not None and (image.ndim != ddf.ndim or image.shape[0] != ddf.shape[0]):
        raise ValueError(
            f"image of shape {tuple(image.shape)} and ddf of shape {tuple(ddf.shape)} "
            "differ in batch size or dimension."
        )


def axis_factor(size: int) -> float:
    """One voxel in the [-1, 1] units of ``grid_sample``; 0 where there is a single one, with no extent to move in."""
    # Arithmetic alone: in an exported network a comparison would stay as it came out for the size of the export.
    single = 1 // size
    return 2.0 * (1 - single) / (size - 1 + single)


def of_axes(numbers: Sequence[float], like: Tensor) -> Tensor:
    """A number of each axis, (d,), of the device and type of another tensor.

    Args:
        numbers: that follow from sizes.
        like: the tensor.
    """
    # Not one tensor of all: when a network is exported, sizes are tensors or symbols, which have to stay in its graph.
    return torch.stack([torch.ones((), device=like.device, dtype=like.dtype) * number for number in numbers])


def normalised_axis(k: int, ddf: Tensor, source_shape: Sequence[int]) -> tuple[Tensor, float]:
    """Sampling positions along axis ``k`` as ``identity + factor * ddf[:, k]`` in the [-1, 1] units of ``grid_sample``.

    Args:
        k: array axis.
        ddf: (B, d, *spatial).
        source_shape: spatial shape of the image that is sampled (``align_corners=True``).

    Returns:
        The identity, a view that broadcasts over (B, *spatial), and the factor.
    """
    shape = ddf.shape[2:]
    factor = axis_factor(source_shape[k])
    corner = 1.0 - 1 // source_shape[k]
    identity = torch.arange(shape[k], device=ddf.device, dtype=ddf.dtype).mul_(factor).sub_(corner)
    return identity.view([-1 if axis == k else 1 for axis in range(len(shape))]), factor


def sampling_grid(ddf: Tensor, source_shape: Sequence[int], planes: slice = _ALL) -> Tensor:
    """Normalised positions ``x + ddf(x)`` for ``grid_sample``; made of three one-dimensional axes, no cached volume.

    Args:
        ddf: (B, d, *spatial) in voxels of the sampled image.
        source_shape: spatial shape of the sampled image.
        planes: which are wanted along the first axis.

    Returns:
        (B, planes, *spatial[1:], d), last axis in the reversed (x, y, z) order of ``grid_sample``.
    """
    dims, part = ddf.shape[1], ddf[:, :, planes]
    grid = ddf.new_empty((ddf.shape[0], *part.shape[2:], dims))
    for k in range(dims):
        identity, factor = normalised_axis(k, ddf, source_shape)
        identity = identity[planes] if k == 0 else identity
        torch.add(identity, part[:, k], alpha=factor, out=grid[..., dims - 1 - k])
    return grid


def traceable_sampling_grid(ddf: Tensor, source_shape: Sequence[int]) -> Tensor:
    """:func:`sampling_grid` without in-place writes, for tracing and export."""
    axes = []
    for k in reversed(range(ddf.shape[1])):
        identity, factor = normalised_axis(k, ddf, source_shape)
        axes.append(identity + ddf[:, k] * factor)
    return torch.stack(axes, dim=-1)


def normalised_points(points: Tensor, source_shape: Sequence[int]) -> Tensor:
    """Scattered positions in the units and the reversed order of axes that ``grid_sample`` wants.

    Args:
        points: (B, N, d), in voxels of the sampled image.
        source_shape: spatial shape of the sampled image.

    Returns:
        (B, N, 1, d) in two dimensions, (B, N, 1, 1, d) in three: an image that is N voxels long.
    """
    factors = [axis_factor(size) for size in source_shape]
    pairs = zip(points.unbind(-1), factors, strict=True)
    axes = [position * factor - (1.0 if factor else 0.0) for position, factor in pairs]
    return torch.stack(axes[::-1], dim=-1).unflatten(1, (points.shape[1], *[1] * (len(factors) - 1)))

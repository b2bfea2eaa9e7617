# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a displacement field, found by its shape and its values and named."""

from __future__ import annotations

import logging
from itertools import permutations
from pathlib import Path

import torch
from torch import Tensor

from common.checks import InputError
from common.spatial.finite import all_finite
from common.spatial.transform import Transform
from common.spatial.world import Grid

_LOGGER = logging.getLogger(__name__)
VOXEL_MARK = b"voxels"
"""Intent name of fields in voxels that are written here: shape and affine do not tell them from millimetres."""
_SAMPLES_PER_AXIS = 24
_POSITION_TOLERANCE = 0.2
_TINY = 1.0
"""Voxels; a field that nowhere moves so far may be in normalised units."""


def half_of(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the half-resolution form."""
    return tuple(round(n / 2) for n in shape)


def channel_axis(shape: tuple[int, ...], spatial: tuple[int, ...]) -> int | None:
    """0 or -1 where the components of a field of this shape are, None when it is no field on this grid."""
    if shape == (3, *spatial):
        return 0
    return -1 if shape == (*spatial, 3) else None


def check_shape(path: str | Path, shape: tuple[int, ...], grid: Grid, convention: str) -> int:
    """Find the axis of the components, or say what is wrong with a shape.

    Args:
        path: of the field, for the message.
        shape: of the array in the file.
        grid: of the fixed image.
        convention: "voxels" or "learn2reg_half".

    Returns:
        0 (channel first) or -1 (channel last).

    Raises:
        InputError: naming what the shape looks like instead.
    """
    half = half_of(grid.shape)
    wanted = half if convention == "learn2reg_half" else grid.shape
    axis = channel_axis(shape, wanted)
    if axis is not None:
        return axis
    raise InputError(f"{path} has shape {shape}, {_expected(convention, grid.shape)}: {_diagnosis(shape, grid.shape)}")


def _expected(convention: str, spatial: tuple[int, ...]) -> str:
    if convention == "learn2reg_half":
        return f"but half resolution of the fixed grid {spatial} is {(3, *half_of(spatial))}"
    return f"but a field on the fixed grid is {(*spatial, 3)} or {(3, *spatial)}"


def _diagnosis(shape: tuple[int, ...], spatial: tuple[int, ...]) -> str:
    if len(shape) == 3:
        return "this is a scalar image, not a field of vectors."
    if len(shape) != 4:
        return "a field in voxels has four axes."
    if 3 not in (shape[0], shape[-1]):
        return f"this looks like a series of {shape[-1]} volumes, not a field of vectors."
    for found in (shape[1:] if shape[0] == 3 else None, shape[:-1] if shape[-1] == 3 else None):
        if found is None:
            continue
        if found == spatial:
            return "this is the full resolution: use --convention voxels."
        if found == half_of(spatial):
            return "this is the half-resolution form of Learn2Reg: use --convention learn2reg_half."
        for order in permutations(range(3)):
            if found == tuple(spatial[axis] for axis in order):
                return f"its axes are permuted: the shape matches the fixed grid with axes {order}."
            if found == half_of(tuple(spatial[axis] for axis in order)):
                return f"this is half the resolution with permuted axes: it matches the fixed grid with axes {order}."
    return "the field belongs to the grid of another image."


def check_dims(path: str | Path, transform: Transform, reference: Grid | None) -> None:
    """Refuse a transform of two dimensions for a volume, and one of three for an image of two.

    Args:
        path: of the transform, for the message.
        transform: as it was read.
        reference: grid of the fixed image, if known.

    Raises:
        InputError: naming both.
    """
    if reference is not None and transform.flat != reference.flat:
        dims = 2 if transform.flat else 3
        raise InputError(f"{path} is a transform in {dims}D, but the fixed image is {reference.dims}D.")


def check_finite(path: str | Path, values: Tensor) -> None:
    """Refuse NaN and infinite values.

    Raises:
        InputError: with their number.
    """
    if not all_finite(values):
        count = int((~torch.isfinite(values)).sum())
        raise InputError(f"{path} holds {count} values that are NaN or infinite: the method that wrote it has failed.")


def check_to_write(path: str | Path, values: Tensor) -> None:
    """Refuse to write NaN and infinite values.

    Raises:
        InputError: with their number.
    """
    if not all_finite(values):
        count = int((~torch.isfinite(values)).sum())
        raise InputError(f"{path} is not written: of the field {count} values are NaN, infinite or beyond its type.")


def check_displacements(path: str | Path, ddf: Tensor, convention: str, has_world: bool) -> None:
    """Refuse values that cannot be displacements in voxels, and warn of those that are hardly such.

    Args:
        path: of the field, for the message.
        ddf: (1, 3, *spatial), in voxels.
        convention: how the file was understood.
        has_world: whether the file knows the world. The moving scan may then lie far away in it, and a shift of all
            voxels counts for nothing.

    Raises:
        InputError: when values are not finite, are positions rather than displacements, or larger than the image.
    """
    check_finite(path, ddf)
    kind = _position_units(ddf)
    if kind is not None:
        raise InputError(f"{path} holds positions ({kind}), not displacements: subtract the identity grid.")
    lowest, highest = ddf[0].amin(dim=(1, 2, 3)), ddf[0].amax(dim=(1, 2, 3))
    shift = ddf[0].mean(dim=(1, 2, 3)) if has_world else torch.zeros_like(lowest)
    largest = torch.maximum(shift - lowest, highest - shift).tolist()
    for axis, (moved, size) in enumerate(zip(largest, ddf.shape[2:], strict=True)):
        if moved > max(size, 2):
            raise InputError(
                f"{path}, read as {convention}, displaces by up to {moved:.1f} voxels along axis {axis}, which has "
                f"only {size}: its units are other ones; state them with --convention."
            )
    if 0 < max(largest) < _TINY:
        _LOGGER.warning(
            "%s, read as %s, displaces by %.2g voxels at most: should it be in normalised [-1, 1] units, multiply "
            "component k by (size of axis k - 1) / 2.",
            path,
            convention,
            max(largest),
        )


def _position_units(ddf: Tensor) -> str | None:
    """Units of the positions that a field holds in place of displacements, None where it holds displacements."""
    spatial = ddf.shape[2:]
    if min(spatial) < 4:
        return None
    strides = [max(1, n // _SAMPLES_PER_AXIS) for n in spatial]
    sample = ddf[0, :, :: strides[0], :: strides[1], :: strides[2]].double()
    fits = [_line(sample[k], k, strides[k]) for k in range(3)]
    if all(
        abs(slope - 1) < _POSITION_TOLERANCE and residual < 0.1 * size
        for (slope, _, residual), size in _with(fits, spatial)
    ):
        return "voxels"
    if all(
        abs(slope * (size - 1) / 2 - 1) < _POSITION_TOLERANCE
        and abs(start + 1) < _POSITION_TOLERANCE
        and residual < 0.1
        for (slope, start, residual), size in _with(fits, spatial)
    ):
        return "normalised to [-1, 1]"
    return None


def _with(fits: list[tuple[float, float, float]], spatial: torch.Size) -> list[tuple[tuple[float, float, float], int]]:
    return list(zip(fits, spatial, strict=True))


def _line(component: Tensor, axis: int, stride: int) -> tuple[float, float, float]:
    """Slope, start and root mean square residual of a component as a linear function of its axis."""
    view = [-1 if k == axis else 1 for k in range(3)]
    position = torch.arange(component.shape[axis], dtype=component.dtype).mul_(stride)
    centred = (position - position.mean()).view(view)
    mean = component.mean()
    slope = (component * centred).mean() / (centred * centred).mean()
    residual = (component - mean - slope * centred).square().mean().sqrt()
    return float(slope), float(mean - slope * position.mean()), float(residual)

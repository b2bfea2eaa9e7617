# SPDX-License-Identifier: Apache-2.0
"""Displacement fields on disk, in the conventions of other tools, as voxels of the fixed grid and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import (
    VOXEL_MARK,
    channel_axis,
    check_dims,
    check_displacements,
    check_finite,
    check_shape,
    half_of,
)
from common.io.field_places import check_place, is_made_up
from common.io.files import first_line
from common.io.flat_fields import lifted_array
from common.io.formats.conventions import CONVENTIONS, VECTORS, check_stated
from common.io.formats.reader import ARRAYS, read_world
from common.io.formats.vectors import field_of
from common.io.formats.writer import write_as
from common.io.learn2reg import from_half_resolution
from common.io.nifti import open_field, open_nifti, voxels_of
from common.io.nifti_files import NIFTI
from common.spatial.rounding import BORDER
from common.spatial.transform import Affine
from common.spatial.world import Grid, between_grids

__all__ = ["CONVENTIONS", "read_array", "read_field", "says_voxels", "write_displacement"]
_DISPLACEMENTS = ("voxels", "learn2reg_half", "lps_mm", "ras_mm", "itk")
"""Conventions whose values could be in other units than they are read in."""


def read_field(
    path: str | Path, grid: Grid, convention: str = "auto", moving: Grid | None = None
) -> tuple[Tensor, str]:
    """Read a transform of any tool as a displacement field.

    Fields in voxels ("voxels", "learn2reg_half") belong to the grid whatever their affine says; one that says that the
    array is turned is refused. Their components come first or last. All else has its place in the world and is
    resampled, with no displacement outside its own grid, as ITK does; docs/evaluation.md lists what is read.

    Args:
        path: of the file.
        grid: of the fixed image.
        convention: one of :data:`CONVENTIONS`; "auto" goes by suffix, shape, header and values.
        moving: grid of the moving image, which FSL's files need.

    Returns:
        (1, 3, *grid.shape), float32, voxels of ``grid``; and the convention found. Of an image of two dimensions the
        third component is 0.

    Raises:
        InputError: when the file is missing, damaged or not read, or its shape, header or values contradict the
            convention.
    """
    path = Path(path)
    world = read_world(path, convention, grid, moving)
    if world is None:
        ddf, found, has_world = _from_array(path, grid, convention, moving)
    else:
        transform, found = world
        check_dims(path, transform, grid)
        has_world, first = True, next(iter(transform.stages), None)
        if first is not None and not isinstance(first, Affine) and not first.grid.same_as(grid):
            check_overlap(path, first.grid, grid)
        ddf = transform.ddf(grid)
    if found in _DISPLACEMENTS:
        check_displacements(path, ddf, found, has_world)
    else:
        check_finite(path, ddf)
    return ddf, found


def write_displacement(path: str | Path, ddf: Tensor, grid: Grid) -> None:
    """Write a field as the NIfTI vector image that ITK, ANTs and 3D Slicer apply: LPS millimetres, intent 1007.

    Args:
        path: ends in .nii.gz or .nii.
        ddf: (1, 3, *grid.shape), in voxels of ``grid``.
        grid: of the fixed image. ITK reads no NIfTI whose axes are not at right angles; :func:`write_transform` can.

    Raises:
        InputError: when values are not finite or the file cannot be written.
    """
    write_as(path, "itk", ddf, grid)


def check_overlap(path: str | Path, own: Grid, grid: Grid) -> None:
    """Refuse a field that lies beside the fixed image.

    Raises:
        InputError: when the boxes of the two grids do not meet.
    """
    corners = torch.cartesian_prod(*(torch.tensor([0.0, n - 1.0], dtype=torch.float64) for n in grid.shape))
    between = between_grids(own, grid)
    inside = corners @ between[:3, :3].T + between[:3, 3]
    last = torch.tensor(own.shape, dtype=torch.float64) - 1
    if bool((inside.amax(0) < -BORDER).any() or (inside.amin(0) > last + BORDER).any()):
        raise InputError(
            f"{path} lies on a grid that does not meet the fixed image (origins {_origin(own)} and {_origin(grid)} "
            "mm): its header is that of another image or frame."
        )


def _origin(grid: Grid) -> tuple[float, ...]:
    return tuple(round(value, 1) for value in grid.affine[:3, 3].tolist())


def _from_array(path: Path, grid: Grid, convention: str, moving: Grid | None) -> tuple[Tensor, str, bool]:
    """A field that lies on the fixed grid: the displacement, its convention, and whether its header knows the world."""
    if path.name.lower().endswith(ARRAYS):
        check_stated(path, "a NumPy file", convention, (*VECTORS, "learn2reg_half"))
        array, file = read_array(path), None
        array = lifted_array(array, path) if grid.flat else array
    else:
        file = open_field(path, grid)
        array = voxels_of(file, path)
    if convention == "auto":
        convention = _guessed(path, array, grid)
    if convention not in ("voxels", "learn2reg_half"):
        axis = check_shape(path, array.shape, grid, convention)
        vectors = torch.from_numpy(np.array(np.moveaxis(array, axis, -1), dtype=np.float32))
        return field_of(path, vectors, grid, convention, moving).ddf, convention, True
    has_world = file is not None and not is_made_up(file)
    if has_world:
        check_place(path, file, grid)
    return _from_voxels(path, array, grid, convention), convention, has_world


def _guessed(path: Path, array: np.ndarray, grid: Grid) -> str:
    """Full or half resolution, by shape and type."""
    axis = channel_axis(array.shape, grid.shape)
    if axis == 0 and array.dtype == np.float16:
        raise InputError(
            f"{path} is float16, {array.shape}: on this grid a full field, but of the form that Learn2Reg uses for "
            "half of a grid twice as large; state --convention voxels if it belongs to this grid."
        )
    return "learn2reg_half" if axis is None and channel_axis(array.shape, half_of(grid.shape)) == 0 else "voxels"


def read_array(path: Path) -> np.ndarray:
    """The one array of a NumPy file.

    Raises:
        InputError: when the file is damaged, holds objects, another number of arrays or no numbers.
    """
    try:
        content = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            with content:
                if len(content.files) != 1:
                    raise InputError(f"{path} holds {len(content.files)} arrays, but a field is exactly one.")
                content = content[content.files[0]]
    except InputError:
        raise
    except Exception as error:  # zip, header and object arrays each have their own
        raise InputError(f"{path} cannot be read as one NumPy array ({first_line(error)}).") from error
    if content.dtype.kind not in "fiu":
        raise InputError(f"{path} holds values of type {content.dtype}, but a field has numbers.")
    return np.asarray(content)


def _from_voxels(path: Path, array: np.ndarray, grid: Grid, convention: str) -> Tensor:
    axis = check_shape(path, array.shape, grid, convention)
    channel_first = np.ascontiguousarray(array if axis == 0 else np.moveaxis(array, -1, 0), dtype=np.float32)
    if convention == "learn2reg_half":
        check_finite(path, torch.from_numpy(channel_first))
        channel_first = from_half_resolution(channel_first)
        if channel_first.shape[1:] != grid.shape:
            raise InputError(f"{path} doubles to {channel_first.shape[1:]}, which is not the fixed grid {grid.shape}.")
    return torch.from_numpy(channel_first)[None]


def says_voxels(path: str | Path) -> bool:
    """Whether a file says itself that it holds voxels: a NumPy file has no world, a NIfTI has this project's mark."""
    name = Path(path).name.lower()
    return not name.endswith(NIFTI) or bytes(open_nifti(path).header["intent_name"].item()) == VOXEL_MARK

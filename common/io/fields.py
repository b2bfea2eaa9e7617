# SPDX-License-Identifier: Apache-2.0
"""Displacement fields on disk, in the conventions of other tools, as voxels of the fixed grid and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import (
    channel_axis,
    check_displacements,
    check_finite,
    check_shape,
    check_to_write,
    half_of,
)
from common.io.header_forms import set_world
from common.io.itk_transforms import ITK_SUFFIXES, read_itk
from common.io.learn2reg import from_half_resolution
from common.io.nifti import NIFTI, check_is_file, first_line, open_nifti, save_nifti, spatial_grid, voxels_of
from common.spatial.rounding import BORDER, turned_vectors
from common.spatial.transform import Field, Transform
from common.spatial.world import Grid, between_grids

CONVENTIONS = ("auto", "voxels", "learn2reg_half", "lps_mm", "ras_mm", "itk")
"""How a file states displacements; see :func:`read_field`."""
LPS = (-1.0, -1.0, 1.0)
"""Signs between the world of NIfTI (right, anterior, superior) and that of ITK (left, posterior, superior)."""

_ARRAYS = (".npz", ".npy")
_DISPLACEMENT, _VECTOR = 1006, 1007
_WORLD = {_DISPLACEMENT: "ras_mm", _VECTOR: "lps_mm"}
"""What the intents of NIfTI mean to ITK 5: vectors of 1006 are RAS and change signs on reading, of 1007 they stay."""


def read_field(path: str | Path, grid: Grid, convention: str = "auto") -> tuple[Tensor, str]:
    """Read a displacement field of any convention.

    - "voxels": (D, H, W, 3) or (3, D, H, W), .nii.gz, .nii, .npz or .npy, voxels of the fixed grid, component k along
      array axis k. The affine is not used, but one that says that the array is turned is refused.
    - "learn2reg_half": (3, D/2, H/2, W/2) of Learn2Reg 2021, values in voxels of the full grid.
    - "lps_mm": NIfTI vector image of intent 1007, millimetres along left, posterior, superior: ITK, ANTs, Greedy.
    - "ras_mm": the same along right, anterior, superior: intent 1006, which ITK 5 turns to LPS when reading.
    - "itk": .h5, .hdf5, .tfm, .txt or .mat, affine, displacement field or a composition.

    Fields in millimetres may lie on another grid of the same world: they are resampled, zero outside their grid, as ITK
    does.

    Args:
        path: of the field.
        grid: of the fixed image.
        convention: one of :data:`CONVENTIONS`; "auto" goes by suffix, shape and header.

    Returns:
        (1, 3, *grid.shape), float32, voxels of ``grid``; and the convention found.

    Raises:
        InputError: when the file is missing or damaged, or its shape, header or values contradict the convention.
    """
    path = Path(path)
    has_world = True
    found, array, file = _open(path, grid, convention)
    if found == "itk":
        ddf = read_itk(path, grid).ddf(grid)
    elif array is not None and found in ("voxels", "learn2reg_half"):
        has_world = file is not None and not is_made_up(file)
        if has_world:
            _check_orientation(path, file, grid)
        ddf = _from_voxels(path, array, grid, found)
    else:
        field = field_from_world(path, file, found)
        if not field.grid.same_as(grid):
            check_overlap(path, field.grid, grid)
        ddf = Transform((field,)).ddf(grid)
    check_displacements(path, ddf, found, has_world)
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
    signs = torch.tensor(LPS, dtype=torch.float64)
    vectors = torch.einsum("rc,cijk->ijkr", (signs[:, None] * grid.affine[:3, :3]).float(), ddf[0].cpu().float())
    check_to_write(path, vectors)
    file = nibabel.Nifti1Image(vectors[..., None, :].numpy(), None)
    set_world(file, grid.affine.numpy())
    file.header.set_intent(_VECTOR)
    save_nifti(path, file)


def field_from_world(path: Path, file: Any, convention: str) -> Field:
    """A NIfTI vector image in millimetres as a field on its own grid.

    Args:
        path: of the file, for messages.
        file: the opened NIfTI.
        convention: "lps_mm" or "ras_mm".

    Raises:
        InputError: when values are not finite or the affine is singular.
    """
    own = spatial_grid(file, path)
    vectors = torch.from_numpy(voxels_of(file, path).reshape(*own.shape, 3))
    check_finite(path, vectors)
    to_voxels = torch.linalg.inv(own.affine[:3, :3])
    if convention == "lps_mm":
        to_voxels = to_voxels * torch.tensor(LPS, dtype=torch.float64)
    return Field(own, turned_vectors(to_voxels, vectors.flatten(0, 2).T).view(1, 3, *own.shape))


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


def _open(path: Path, grid: Grid, convention: str) -> tuple[str, np.ndarray | None, Any]:
    """Convention found, the array of a field in voxels, and the NIfTI file where it is one."""
    if convention not in CONVENTIONS:
        raise InputError(f"The convention {convention!r} is unknown; use one of {', '.join(CONVENTIONS)}.")
    check_is_file(path)
    if path.name.endswith(ITK_SUFFIXES):
        check_stated(path, "an ITK transform file", convention, "itk")
        return "itk", None, None
    if path.name.endswith(_ARRAYS):
        if convention not in ("auto", "voxels", "learn2reg_half"):
            raise InputError(f"{path} is a NumPy file, which has no world: state voxels or learn2reg_half.")
        array, file = read_array(path), None
    elif path.name.endswith(NIFTI):
        file = open_nifti(path)
        world = world_convention(path, file, convention)
        if world is not None:
            return world, None, file
        array = voxels_of(file, path)
    else:
        raise InputError(f"{path} is no field: expected one of {', '.join((*NIFTI, *_ARRAYS, *ITK_SUFFIXES))}.")
    if convention == "auto":
        convention = _guessed(path, array, grid)
    return convention, array, file


def _guessed(path: Path, array: np.ndarray, grid: Grid) -> str:
    """Full or half resolution, by shape and type."""
    axis = channel_axis(array.shape, grid.shape)
    if axis == 0 and array.dtype == np.float16:
        raise InputError(
            f"{path} is float16, {array.shape}: on this grid a full field, but of the form that Learn2Reg uses for "
            "half of a grid twice as large; state --convention voxels if it belongs to this grid."
        )
    return "learn2reg_half" if axis is None and channel_axis(array.shape, half_of(grid.shape)) == 0 else "voxels"


def world_convention(path: Path, file: Any, convention: str) -> str | None:
    """Which millimetres a NIfTI holds by its header, None for voxels, checked against the convention stated.

    Raises:
        InputError: when header and convention contradict each other, or the header says too little.
    """
    shape, intent = file.shape, int(file.header["intent_code"])
    is_vector = len(shape) == 5 and shape[3:] == (1, 3)
    if len(shape) == 5 and not is_vector:
        raise InputError(f"{path} has shape {shape}: a vector image is (D, H, W, 1, 3), this is something else.")
    if intent in _WORLD and (is_vector or (len(shape) == 4 and shape[3] == 3)):
        check_stated(path, f"a vector image of intent {intent}, that is {_WORLD[intent]}", convention, _WORLD[intent])
        return _WORLD[intent]
    if is_vector:
        if convention not in ("lps_mm", "ras_mm"):
            raise InputError(f"{path} is a vector image without intent: state --convention lps_mm or ras_mm.")
        return convention
    if convention in ("lps_mm", "ras_mm"):
        raise InputError(
            f"{path} of shape {shape} has no vector intent in its header, so it holds voxels: millimetres are a "
            "5D vector image (D, H, W, 1, 3) of intent 1007 (LPS) or 1006 (RAS); state --convention voxels."
        )
    if convention == "itk":
        raise InputError(f"{path} is a NIfTI image, not an ITK transform file: state --convention lps_mm or voxels.")
    return None


def check_stated(path: Path, what: str, stated: str, found: str) -> None:
    """Refuse a stated convention that a file contradicts.

    Args:
        path: of the file, for the message.
        what: the file is.
        stated: convention.
        found: convention of the file.

    Raises:
        InputError: when "auto" is not stated and neither is what was found.
    """
    if stated not in ("auto", found):
        raise InputError(f"{path} is {what}, but --convention {stated} was stated: state {found} or auto.")


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


def is_made_up(file: Any) -> bool:
    """Whether a header says nothing about the world: no code or an origin of zero, as challenge entries often have."""
    coded = int(file.header["sform_code"]) > 0 or int(file.header["qform_code"]) > 0
    return not coded or not file.affine[:3, 3].any()


def _check_orientation(path: Path, file: Any, grid: Grid) -> None:
    """Refuse an array in voxels whose header says that its axes run along other directions than the fixed image's."""
    own, fixed = (nibabel.aff2axcodes(affine) for affine in (file.affine, grid.affine.numpy()))
    if own != fixed:
        raise InputError(
            f"{path} has the orientation {''.join(own)}, but the fixed image is {''.join(fixed)}: a field in voxels "
            "follows the array axes of the fixed image, so write it on that grid."
        )

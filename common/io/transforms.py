# SPDX-License-Identifier: Apache-2.0
"""Transforms between two scans on disk: one door for the files of all tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.checks import InputError
from common.io.field_checks import channel_axis, check_dims, check_displacements
from common.io.field_places import is_made_up, say_place
from common.io.fields import CONVENTIONS, read_field, says_voxels, write_displacement
from common.io.formats.reader import ARRAYS, read_world
from common.io.itk_hdf5 import write_transform
from common.io.nifti import open_field, read_grid, spatial_grid, voxels_of
from common.spatial.transform import Affine, Field, Transform
from common.spatial.world import Grid

__all__ = [
    "CONVENTIONS",
    "Affine",
    "Field",
    "Grid",
    "Transform",
    "read_field",
    "read_grid",
    "read_transform",
    "write_displacement",
    "write_transform",
]


def read_transform(
    path: str | Path, reference: Grid | None = None, convention: str = "auto", moving: Grid | None = None
) -> Transform:
    """Read a transform or a displacement field as a chain of maps between worlds.

    A field in millimetres stays on its own grid, whatever the reference. A field in voxels lies on the grid that its
    header states, or on the reference where it has no header or a made-up one.

    Args:
        path: of the file; docs/evaluation.md lists what is read.
        reference: grid of the fixed image; needed for NumPy files, Learn2Reg fields, splines and FSL.
        convention: one of :data:`CONVENTIONS`.
        moving: grid of the moving image; needed for FSL.

    Returns:
        Fixed world to moving world.

    Raises:
        InputError: when the file is missing, damaged or not read, contradicts the convention, does not say what its
            numbers mean, needs a grid, or is of two dimensions where the reference has three, or the other way round.
    """
    path = Path(path)
    world = read_world(path, convention, reference, moving)
    if world is not None:
        check_dims(path, world[0], reference)
        return world[0]
    if not path.name.lower().endswith(ARRAYS) and convention != "learn2reg_half":
        file = open_field(path, reference)
        say_place(path, file, reference)
        if not is_made_up(file) and channel_axis(file.shape, file.shape[:3]) == -1:
            field = Field(spatial_grid(file, path), torch.from_numpy(np.moveaxis(voxels_of(file, path), -1, 0))[None])
            check_displacements(path, field.ddf, "voxels", has_world=True)
            if convention == "auto":
                _check_certain(path, field)
            return Transform((field,))
    if reference is None:
        raise InputError(f"{path} does not say where its voxels lie: give the fixed image as reference.")
    return Transform((Field(reference, read_field(path, reference, convention, moving)[0]),))


def _check_certain(path: Path, field: Field) -> None:
    """Refuse a field with a world that may as well be in millimetres: a wrong guess looks like a result."""
    is_alike = bool((field.grid.affine[:3, :3] - torch.eye(3)).abs().max() < 1e-3)
    if not says_voxels(path) and not is_alike and bool(field.ddf.any()):
        raise InputError(
            f"{path} does not say what its vectors are: state --convention voxels (Learn2Reg), ras_mm (SynthMorph, "
            "EasyReg, MRtrix) or lps_mm."
        )

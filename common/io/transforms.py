# SPDX-License-Identifier: Apache-2.0
"""Transforms between two scans on disk: one door for the files of all tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.checks import InputError
from common.io.field_checks import channel_axis, check_displacements
from common.io.fields import (
    CONVENTIONS,
    check_stated,
    field_from_world,
    is_made_up,
    read_field,
    world_convention,
    write_displacement,
)
from common.io.itk_transforms import ITK_SUFFIXES, read_itk, write_transform
from common.io.nifti import NIFTI, check_is_file, open_nifti, read_grid, spatial_grid, voxels_of
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


def read_transform(path: str | Path, reference: Grid | None = None, convention: str = "auto") -> Transform:
    """Read a transform or a displacement field as a chain of maps between worlds.

    A field in millimetres stays on its own grid, whatever the reference. A field in voxels lies on the grid that its
    header states, or on the reference where it has no header or a made-up one.

    Args:
        path: of the file; see :func:`read_field` for the forms.
        reference: grid of the fixed image; needed for NumPy files, Learn2Reg fields and B-splines.
        convention: one of :data:`CONVENTIONS`.

    Returns:
        Fixed world to moving world.

    Raises:
        InputError: when the file is missing or damaged, contradicts the convention, or needs a reference.
    """
    path = Path(path)
    check_is_file(path)
    if path.name.endswith(ITK_SUFFIXES):
        check_stated(path, "an ITK transform file", convention, "itk")
        return read_itk(path, reference)
    if path.name.endswith(NIFTI) and convention in CONVENTIONS and convention != "learn2reg_half":
        file = open_nifti(path)
        world = world_convention(path, file, convention)
        if world is not None:
            field = field_from_world(path, file, world)
            check_displacements(path, field.ddf, world, has_world=True)
            return Transform((field,))
        if not is_made_up(file) and channel_axis(file.shape, file.shape[:3]) == -1:
            values = np.moveaxis(voxels_of(file, path), -1, 0)
            field = Field(spatial_grid(file, path), torch.from_numpy(values)[None])
            check_displacements(path, field.ddf, "voxels", has_world=True)
            return Transform((field,))
    if reference is None:
        raise InputError(f"{path} does not say where its voxels lie: give the fixed image as reference.")
    return Transform((Field(reference, read_field(path, reference, convention)[0]),))

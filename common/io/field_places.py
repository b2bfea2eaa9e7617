# SPDX-License-Identifier: Apache-2.0
"""Where a displacement field in voxels lies, whose header may be that of its image, of none, or half lost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from common.checks import InputError
from common.io.header_forms import affine_of
from common.io.nifti import spatial_grid
from common.spatial.places import GRID_TOLERANCE, voxels_apart
from common.spatial.world import Grid

_LOGGER = logging.getLogger(__name__)


def is_made_up(file: Any) -> bool:
    """Whether a header says nothing about the world, as challenge entries often have it.

    That is no code, or voxels of unit size from 0 along the axes of RAS or, as ITK writes them, LPS.
    """
    coded = int(file.header["sform_code"]) > 0 or int(file.header["qform_code"]) > 0
    return not coded or any(np.array_equal(file.affine, np.diag([sign, sign, 1, 1])) for sign in (1, -1))


def say_place(path: Path, file: Any, reference: Grid | None) -> None:
    """Warn where a field in voxels of the shape of the reference may lie elsewhere than it is taken to lie.

    Args:
        path: of the field.
        file: the opened NIfTI, whose first voxel is at 0 in such cases.
        reference: grid of the fixed image, if known.
    """
    if reference is None or reference.shape != file.shape[:3] or file.affine[:3, 3].any():
        return
    if spatial_grid(file, path).same_as(reference):
        return
    if not is_made_up(file):
        _LOGGER.warning(
            "%s is taken to lie where its header says, from 0 on, which is not where the reference lies; if it has "
            "lost its origin, give it the header of the fixed image.",
            path,
        )
    elif int(file.header["sform_code"]) > 0 or int(file.header["qform_code"]) > 0:
        _LOGGER.warning(
            "%s states voxels of 1 mm from 0 on, as files do that know no header: it is taken to lie on the reference.",
            path,
        )


def check_place(path: Path, file: Any, grid: Grid) -> None:
    """Refuse an array in voxels whose header says that its axes run along other directions than the fixed image's.

    A warning is logged where it says that its voxels lie elsewhere, or where its first voxel is at 0, so that it may
    have lost its place.

    Args:
        path: of the field.
        file: the opened NIfTI.
        grid: of the fixed image.

    Raises:
        InputError: naming both orientations.
    """
    affine = affine_of(file, path)
    own, fixed = (nibabel.aff2axcodes(matrix) for matrix in (affine, grid.affine.numpy()))
    if own != fixed and affine[:3, 3].any():
        raise InputError(
            f"{path} has the orientation {''.join(own)}, but the fixed image is {''.join(fixed)}: a field in voxels "
            "follows the array axes of the fixed image, so write it on that grid."
        )
    apart = voxels_apart(grid.shape, grid.affine, torch.from_numpy(affine))
    if file.shape[:3] == grid.shape and apart > GRID_TOLERANCE:
        _LOGGER.warning(
            "%s: by its header its voxels lie up to %.3g voxels from those of the fixed image, on which a field in "
            "voxels is taken to lie.",
            path, apart,
        )  # fmt: skip

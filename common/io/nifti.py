# SPDX-License-Identifier: Apache-2.0
"""Images and displacement fields as NIfTI files on the fixed grid."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from torch import Tensor

from common.checks import InputError
from common.io.grids import check_nifti_name, save_nifti

_INT32 = np.iinfo(np.int32)


def write_image(path: str | Path, image: Tensor, affine: Tensor) -> None:
    """Write an image or a label map.

    Args:
        path: ends in .nii.gz or .nii.
        image: (1, *spatial); integers (label maps) keep their type, but those of 64 bits become int32; everything else
            is written as float32.
        affine: (4, 4), voxels to millimetres, RAS+ as NIfTI has it.

    Raises:
        InputError: when the name ends otherwise, integers are beyond int32, or the file cannot be written.
    """
    _write(path, image[0], affine)


def write_ddf(path: str | Path, ddf: Tensor, affine: Tensor) -> None:
    """Write a displacement field as it is: voxels, component k along array axis k, last axis of the file.

    Args:
        path: ends in .nii.gz or .nii.
        ddf: (d, *spatial).
        affine: (4, 4) of the fixed image.

    Raises:
        InputError: when the name ends otherwise or the file cannot be written.
    """
    _write(path, ddf.movedim(0, -1), affine)


def _write(path: str | Path, array: Tensor, affine: Tensor) -> None:
    check_nifti_name(path)
    values = array.detach().cpu().numpy()
    if values.dtype in (np.int64, np.uint64):
        # Few readers know NIfTI's integers of 64 bits.
        if values.size and not (_INT32.min <= int(values.min()) and int(values.max()) <= _INT32.max):
            raise InputError(f"Cannot write {path}: its values go beyond {_INT32.max}.")
        values = values.astype(np.int32)
    elif not np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float32)
    file = nibabel.Nifti1Image(values, affine.detach().cpu().numpy())
    file.header.set_xyzt_units("mm")
    save_nifti(path, file)

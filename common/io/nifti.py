# SPDX-License-Identifier: Apache-2.0
"""Images and displacement fields as NIfTI files on the fixed grid."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from torch import Tensor

from common.io.tables import write_bytes


def write_image(path: str | Path, image: Tensor, affine: Tensor) -> None:
    """Write an image or a label map.

    Args:
        path: ends in .nii.gz or .nii.
        image: (1, *spatial); integers (label maps) keep their type, everything else is written as float32.
        affine: (4, 4), voxels to millimetres, RAS+ as NIfTI has it.

    Raises:
        InputError: when the file cannot be written.
    """
    _write(path, image[0], affine)


def write_ddf(path: str | Path, ddf: Tensor, affine: Tensor) -> None:
    """Write a displacement field as it is: voxels, component k along array axis k, last axis of the file.

    Args:
        path: ends in .nii.gz or .nii.
        ddf: (d, *spatial).
        affine: (4, 4) of the fixed image.

    Raises:
        InputError: when the file cannot be written.
    """
    _write(path, ddf.movedim(0, -1), affine)


def _write(path: str | Path, array: Tensor, affine: Tensor) -> None:
    values = array.detach().cpu().numpy()
    if not np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float32)
    file = nibabel.Nifti1Image(values, affine.detach().cpu().numpy())
    file.header.set_xyzt_units("mm")
    content = file.to_bytes()
    if str(path).endswith(".gz"):
        import gzip

        # No time stamp in the header: the same result is the same file.
        content = gzip.compress(content, compresslevel=4, mtime=0)
    write_bytes(path, content)

# SPDX-License-Identifier: Apache-2.0
"""NIfTI files made of arrays, and written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from common.checks import InputError
from common.io.files import replacing
from common.io.header_forms import set_world

NIFTI = (".nii", ".nii.gz")


def nifti_image(values: np.ndarray, affine: np.ndarray, mark: bytes = b"") -> Any:
    """nibabel's image of an array, in the types that files are written with (:func:`common.io.nifti.write_image`).

    Args:
        values: of the voxels.
        affine: (4, 4), voxels to millimetres RAS+.
        mark: the name of its intent.
    """
    values = values.astype(np.uint8) if values.dtype == bool else values
    if values.dtype in (np.int64, np.uint64):
        # Few readers know NIfTI's integers of 64 bits.
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        small = (kind for kind in (np.int32, np.uint32) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
        values = values.astype(next(small, values.dtype))
    elif not np.issubdtype(values.dtype, np.integer):
        values = values.astype(np.float32)
    file = nibabel.Nifti1Image(values, None, dtype=values.dtype)
    set_world(file, affine)
    file.header["intent_name"] = mark
    return file


def save_nifti(path: str | Path, file: Any) -> None:
    """Write nibabel's image whole or not at all; the same content is the same file.

    Args:
        path: ends in .nii.gz or .nii.
        file: the image.

    Raises:
        InputError: when the name ends otherwise or the file cannot be written.
    """
    # A tenth of the time of zlib, for files of the same size.
    from isal import igzip

    check_nifti_name(path)
    # Slice by slice: a whole file in memory is as large as the field itself.
    with replacing(path) as temporary, open(temporary, "wb") as target:
        if not str(path).endswith(".gz"):
            file.to_stream(target)
            return
        # No name and no time stamp in the header.
        with igzip.IGzipFile("", "wb", compresslevel=2, fileobj=target, mtime=0) as packed:
            file.to_stream(packed)


def check_nifti_name(path: str | Path) -> None:
    """Refuse the name of an output that is no NIfTI file.

    Raises:
        InputError: when it ends in neither .nii nor .nii.gz.
    """
    if not str(path).endswith(NIFTI):
        raise InputError(f"{path}: images and fields are written as .nii.gz or .nii.")

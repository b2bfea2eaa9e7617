# SPDX-License-Identifier: Apache-2.0
"""Displacement fields of images of two dimensions as files have them, seen as those of slices.

Two numbers per pixel stand in NIfTI as (W, H, 2), as (W, H, 1, 2), or as ITK writes them, (W, H, 1, 1, 2); in arrays of
NumPy also as (2, W, H).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from common.checks import InputError
from common.io.field_checks import VOXEL_MARK
from common.spatial.world import Grid


class FlatField(nibabel.Nifti1Image):
    """Vectors of two dimensions, lifted: (W, H, 1, 3) or (W, H, 1, 1, 3), the third component 0."""


def as_slice(file: Any, path: str | Path, reference: Grid | None) -> Any:
    """An opened NIfTI of vectors: one of two dimensions as :class:`FlatField`, any other as it is.

    Args:
        file: nibabel's image.
        path: for messages.
        reference: grid of the fixed image, if known; where it is flat, every field is one of two dimensions.

    Raises:
        InputError: when the fixed image has two dimensions and the field has not.
    """
    shape = tuple(int(n) for n in file.shape)
    is_marked = len(shape) == 3 and bytes(file.header["intent_name"].item()) == VOXEL_MARK
    is_vector = len(shape) in (4, 5) and all(n == 1 for n in shape[2:-1])
    if not (shape[-1] == 2 and (is_marked or is_vector)) and not (reference is not None and reference.flat):
        return file
    vectors = lifted_array(np.asarray(file.dataobj), path)
    if len(shape) == 5:
        vectors = vectors[..., None, :]
    header = file.header.copy()
    header.set_data_dtype(vectors.dtype)
    header.set_slope_inter(1, 0)
    return FlatField(vectors, file.affine, header)


def lifted_array(array: np.ndarray, path: str | Path) -> np.ndarray:
    """Two numbers per pixel as three, the third of them 0: (W, H, 1, 3).

    Args:
        array: (W, H, 2), also with axes of one element in between, or (2, W, H).
        path: for messages.

    Raises:
        InputError: when it is something else.
    """
    shape = array.shape
    if len(shape) == 3 and shape[0] == 2 and shape[-1] != 2:
        flat = np.moveaxis(array, 0, -1)
    elif len(shape) >= 3 and shape[-1] == 2 and all(n == 1 for n in shape[2:-1]):
        flat = array.reshape(*shape[:2], 2)
    else:
        raise InputError(
            f"{path} has shape {shape}, but a field of an image of two dimensions has two numbers per pixel, (W, H, 2) "
            "or, as vectors of ITK, (W, H, 1, 1, 2)."
        )
    return np.concatenate([flat, np.zeros_like(flat[..., :1])], axis=-1)[:, :, None]

# SPDX-License-Identifier: Apache-2.0
"""Images and label maps of two dimensions as PNG: grey values of one, eight or sixteen bits.

A picture has rows from top to bottom and columns from left to right; an image here has the column as its first axis and
the row as its second. Pixels have one millimetre, the first one lies at 0, columns go on to the left and rows to the
back, as ITK, and with it SimpleITK and 3D Slicer, read PNG: so transforms mean the same there.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from torch import Tensor

from common.checks import InputError
from common.io.files import first_line, write_bytes
from common.io.header_forms import set_world

PNG = ".png"
_GREY = ("1", "L", "I", "I;16", "I;16B")
"""Modes of Pillow; the last three hold sixteen bits of PNG."""
_AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0])


def open_png(path: str | Path, is_label: bool = False) -> Any:
    """A PNG as nibabel's image of an array (columns, rows), uint8 or uint16.

    Colours whose three channels are one and the same are grey.

    Args:
        path: of the file.
        is_label: whether a picture with a palette holds the numbers of its entries; else its colours count.

    Raises:
        InputError: when the file is damaged or no PNG, has colours, transparent parts or several pictures.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
    except Exception as error:  # the reader has many of its own
        raise InputError(f"{path} cannot be read as PNG ({first_line(error)}); save it anew.") from error
    frames = getattr(picture, "n_frames", 1)
    if frames > 1:
        raise InputError(f"{path} holds {frames} pictures, but one image is expected: split it first.")
    rows = np.asarray(picture) if picture.mode in _GREY or (picture.mode == "P" and is_label) else _grey(picture, path)
    kind = np.uint8 if rows.dtype.itemsize == 1 else np.uint16
    file = nibabel.Nifti1Image(np.ascontiguousarray(rows.T.astype(kind)), None)
    set_world(file, _AFFINE)
    return file


def _grey(picture: Any, path: str | Path) -> np.ndarray:
    """(rows, columns), uint8, of a picture of colours that are none."""
    channels = np.asarray(picture.convert("RGBA"))
    if (channels[..., 3] < 255).any():
        raise InputError(f"{path} has transparent parts, but one number per pixel is expected: save it without them.")
    if (channels[..., :3] != channels[..., :1]).any():
        raise InputError(f"{path} holds colours, but one number per pixel is expected: convert it to grey values.")
    return np.asarray(channels[..., 0])


def write_png(path: str | Path, image: Tensor) -> None:
    """Write an image as grey values, whole or not at all.

    Args:
        path: ends in .png.
        image: (columns, rows); rounded, and cut off at 0 and 65535; of eight bits where that is enough.

    Raises:
        InputError: when the file cannot be written.
    """
    from PIL import Image

    values = np.clip(np.rint(image.detach().cpu().double().numpy()), 0, np.iinfo(np.uint16).max)
    kind = np.uint8 if values.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values.T.astype(kind))).save(content, "png")
    write_bytes(path, content.getvalue())

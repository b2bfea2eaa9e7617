# SPDX-License-Identifier: Apache-2.0
"""A DICOM series seen as a NIfTI file is, so that all that reads scans reads series, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from common.checks import InputError
from common.io.dicom_files import dicom_place
from common.io.dicom_series import Series, read_series
from common.io.header_forms import ITK, say_once, set_world

_TILT = 0.02
"""Degrees; ITK takes the axes for right-angled up to a cosine of 3e-4."""


def open_series(path: str | Path) -> Any | None:
    """The series that a path means as nibabel's image, its voxels not yet decoded.

    Args:
        path: a folder with one series, FOLDER/UID where it holds several, or one file of a series.

    Returns:
        The image, float32, its affine that of :class:`common.io.dicom_series.Series`, and in its ``extra`` the series
        itself as "series". None where the path is no folder and no DICOM.

    Raises:
        InputError: as :func:`common.io.dicom_series.read_series`.
    """
    place = dicom_place(path)
    if place is None:
        return None
    series = read_series(*place)
    if series.tilt > _TILT:
        say_once(
            path,
            f"its slices are tilted by {series.tilt:.3g} degrees (gantry tilt), so that its axes are not at right "
            f"angles; it is taken as it lies, but {ITK} cannot read NIfTI files on its grid.",
        )
    file: Any = nibabel.Nifti1Image(_Voxels(series), series.affine, extra={"series": series})
    set_world(file, series.affine)
    # A header has single precision.
    file.affine[:] = series.affine
    return file


def series_path(path: str | Path, series: str | None = None) -> str:
    """The path of the series that is meant, with its UID, after a look at all of its headers.

    Args:
        path: of an image. What is no DICOM stays as it is.
        series: SeriesInstanceUID, for a folder of several.

    Raises:
        InputError: when a UID is given for what is no folder, and as :func:`common.io.dicom_series.read_series`.
    """
    if series is not None and not Path(path).is_dir():
        raise InputError(f"{path} is no folder, so it holds no series {series} to choose; leave the UID out.")
    place = dicom_place(path)
    if place is None:
        return str(path)
    folder, uid = place
    return str(folder / read_series(folder, series or uid).uid)


class _Voxels:
    """The voxels of a series as nibabel takes arrays that are read when they are asked for."""

    ndim = 3
    dtype = np.dtype(np.float32)

    def __init__(self, series: Series) -> None:
        self.shape = series.shape
        self._decode: Callable[[], np.ndarray] = lambda: series.voxels

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._decode().astype(dtype or self.dtype, copy=bool(copy))

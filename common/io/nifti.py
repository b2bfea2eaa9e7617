# SPDX-License-Identifier: Apache-2.0
"""NIfTI files: read with errors that a person understands, the grids that headers state, images and fields written.

Images in two dimensions may be PNG files, too (:mod:`common.io.png`), and volumes series of DICOM slices
(:mod:`common.io.dicom_image`); both are seen as NIfTI files are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
import torch
from nibabel.spatialimages import HeaderDataError, HeaderTypeError
from torch import Tensor

from common.checks import InputError
from common.io.dicom_image import open_series
from common.io.field_checks import VOXEL_MARK
from common.io.file_kinds import check_content, is_dicom
from common.io.files import first_line
from common.io.flat_fields import FlatField, as_slice
from common.io.header_forms import affine_of
from common.io.label_values import labels_of
from common.io.nifti_files import NIFTI, check_nifti_name, nifti_image, save_nifti
from common.io.png import PNG, open_png
from common.spatial.world import Grid

IMAGES = (*NIFTI, PNG)
"""Endings of images and label maps that are read."""


class HeldImage(Protocol):
    """An image that is in memory already, see :class:`common.io.images.Image`; as a text it is its name."""

    @property
    def array(self) -> np.ndarray:
        """Its values (*spatial)."""

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxels to millimetres RAS+."""


def read_image(path: str | Path | HeldImage) -> tuple[Tensor, Tensor]:
    """Read one image of two or three dimensions.

    Args:
        path: as :func:`open_image` takes it. Axes of one element behind the third, which some tools write, are dropped.
            An image in memory is taken as if it were read from a file that holds it.

    Returns:
        Its values (*spatial) as float32, scaled as the header says; and its affine (4, 4) float64, voxels to
        millimetres RAS+, see :func:`common.io.header_forms.affine_of`.

    Raises:
        InputError: when the file is missing, damaged, of several images, or in colours; and as :func:`open_image`.
    """
    values, affine = _read_single(path)
    return torch.from_numpy(np.array(values, dtype=np.float32, order="C")), affine


def read_labels(path: str | Path | HeldImage) -> tuple[Tensor, Tensor]:
    """Read one label map, as :func:`read_image` reads an image.

    Returns:
        Its labels (*spatial), see :func:`common.io.label_values.labels_of`; and its affine.

    Raises:
        InputError: also when values are no integers.
    """
    values, affine = _read_single(path, is_label=True)
    return labels_of(values, str(path)), affine


def _read_single(path: str | Path | HeldImage, is_label: bool = False) -> tuple[np.ndarray, Tensor]:
    if not isinstance(path, str | Path):
        return path.array, torch.from_numpy(path.affine)
    return single_volume(open_image(path, is_label), path)


def single_volume(file: Any, path: str | Path) -> tuple[np.ndarray, Tensor]:
    """Values (*spatial) and affine (4, 4) of nibabel's image, which has to be one of two or three dimensions.

    Raises:
        InputError: for a series, colours, or a file that is damaged.
    """
    shape = tuple(int(n) for n in file.shape)
    if len(shape) < 2 or max(shape[3:], default=1) > 1:
        raise InputError(
            f"{path} has shape {shape}, but one image of two or three dimensions is expected: extract the volume that "
            "is meant."
        )
    values = voxels_of(file, path, dtype=None).reshape(shape[:3])
    return values, torch.from_numpy(affine_of(file, path))


def read_grid(path: str | Path | HeldImage) -> Grid:
    """Shape and affine of an image; of NIfTI and DICOM only headers are read.

    Trailing axes of one element are ignored.

    Args:
        path: as :func:`open_image` takes it.

    Returns:
        The grid of the image, RAS+ millimetres, see :func:`common.io.header_forms.affine_of`.

    Raises:
        InputError: when the file is missing, damaged, of several images, or of a singular affine; and as
            :func:`open_image`.
    """
    if not isinstance(path, str | Path):
        return Grid.of(path.array.shape, torch.from_numpy(path.affine))
    # The grid of a label map of colours is asked for, too.
    return grid_of(open_image(path, is_label=True), path)


def open_image(path: str | Path, is_label: bool = False) -> Any:
    """An image or a label map as nibabel's image: of NIfTI and DICOM its voxels not yet read, of PNG made here.

    Args:
        path: ends in .nii.gz, .nii or .png, or is a DICOM series, see :func:`common.io.dicom_image.open_series`.
        is_label: whether a PNG of a palette holds the numbers of its entries.

    Raises:
        InputError: as :func:`open_nifti`, :func:`common.io.png.open_png` and
            :func:`common.io.dicom_image.open_series`.
    """
    series = open_series(path)
    if series is not None:
        return series
    check_is_file(Path(path))
    return open_png(path, is_label) if str(path).endswith(PNG) else open_nifti(path)


def open_field(path: str | Path, reference: Grid | None = None) -> Any:
    """A NIfTI of vectors as nibabel's image; those of two dimensions as slices, see :mod:`common.io.flat_fields`.

    Raises:
        InputError: as :func:`open_nifti` and :func:`common.io.flat_fields.as_slice`.
    """
    return as_slice(open_nifti(path), path, reference)


def open_nifti(path: str | Path) -> Any:
    """A NIfTI file as nibabel's image, its voxels not yet read.

    Raises:
        InputError: when the file is missing, a folder, DICOM, damaged or of another kind.
    """
    path = Path(path)
    check_is_file(path)
    if is_dicom(path):
        raise InputError(f"{path} is a DICOM file: convert its series to NIfTI first, for instance with dcm2niix.")
    if not path.name.endswith(NIFTI):
        is_capital = path.name.lower().endswith(NIFTI)
        advice = "write its ending in small letters" if is_capital else "convert it to NIfTI first"
        raise InputError(f"{path} is neither .nii nor .nii.gz: {advice}.")
    check_content(path)
    try:
        return nibabel.load(path)
    except (ValueError, HeaderDataError, HeaderTypeError) as error:  # numbers that contradict the standard
        raise InputError(
            f"{path} cannot be read as NIfTI, its header is faulty ({first_line(error)}): repair that, or convert the "
            "image anew."
        ) from error
    except Exception as error:  # whatever a damaged file makes nibabel raise
        raise InputError(f"{path} cannot be read as NIfTI ({first_line(error)}); copy it anew.") from error


def voxels_of(file: Any, path: str | Path, dtype: Any = np.float32) -> np.ndarray:
    """The values of an opened file, scaled as its header says.

    ``dtype`` None leaves them as they are, or float64 where they are scaled.

    Raises:
        InputError: when the file ends early, is damaged or holds colours or complex numbers.
    """
    kind = file.get_data_dtype()
    if kind.fields:
        raise InputError(f"{path} holds colours, but one number per voxel is expected: convert it to grey values.")
    if kind.kind == "c":
        raise InputError(f"{path} holds complex numbers, but real ones are expected: save their magnitude first.")
    try:
        return np.asarray(file.dataobj, dtype=dtype)
    except Exception as error:  # gzip, zlib, mmap and reshape each have their own
        raise InputError(f"{path} is damaged or cut short ({first_line(error)}); copy it anew.") from error


def grid_of(file: Any, path: str | Path) -> Grid:
    """Grid of an opened file of two or three dimensions.

    Raises:
        InputError: when it has another number of axes, or a singular affine.
    """
    shape = tuple(int(n) for n in file.shape)
    if len(shape) > 3 and max(shape[3:]) > 1:
        raise InputError(f"{path} has shape {shape}, but one image is expected: extract the volume that is meant.")
    return spatial_grid(file, path)


def spatial_grid(file: Any, path: str | Path) -> Grid:
    """Grid of the first three axes of an opened file, whatever its other axes hold; flat where it has two alone.

    Raises:
        InputError: when there are fewer axes, or the header's affine cannot be used.
    """
    shape = tuple(int(n) for n in file.shape[: 2 if isinstance(file, FlatField) else 3])
    if len(shape) < 2:
        raise InputError(f"{path} has shape {shape}, but an image of two or three dimensions is expected.")
    try:
        return Grid.of(shape, torch.from_numpy(affine_of(file, path)))
    except InputError as error:
        raise InputError(f"{path} has a header whose affine cannot be inverted: repair its sform or qform.") from error


def write_image(path: str | Path, image: Tensor, affine: Tensor) -> None:
    """Write an image or a label map.

    Args:
        path: ends in .nii.gz or .nii.
        image: (1, *spatial); integers (label maps) keep their type, but those of 64 bits become int32 or uint32 where
            that is enough; everything else is written as float32.
        affine: (4, 4), voxels to millimetres, RAS+ as NIfTI has it.

    Raises:
        InputError: when the name ends otherwise or the file cannot be written.
    """
    _write(path, image[0], affine)


def write_ddf(path: str | Path, ddf: Tensor, affine: Tensor) -> None:
    """Write a displacement field as it is: voxels, component k along array axis k, last axis of the file.

    Args:
        path: ends in .nii.gz or .nii.
        ddf: (d, *spatial), of two or three dimensions.
        affine: (4, 4) of the fixed image.

    Raises:
        InputError: when the name ends otherwise or the file cannot be written.
    """
    _write(path, ddf.movedim(0, -1), affine, VOXEL_MARK)


def _write(path: str | Path, array: Tensor, affine: Tensor, mark: bytes = b"") -> None:
    check_nifti_name(path)
    save_nifti(path, nifti_image(array.detach().cpu().numpy(), affine.detach().cpu().numpy(), mark))


def check_is_file(path: Path) -> None:
    """Refuse a path that is no file, saying what to do about a folder of DICOM slices.

    Raises:
        InputError: when it is a folder or does not exist.
    """
    if path.is_dir():
        raise InputError(
            f"{path} is a folder, but a file is expected; dcm2niix makes one NIfTI file of a folder of DICOM slices."
        )
    if not path.is_file():
        raise InputError(f"{path} does not exist; check the name.")

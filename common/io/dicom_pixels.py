# SPDX-License-Identifier: Apache-2.0
"""Values of DICOM images: decoded by pydicom, or by ITK's GDCM where pydicom has no decoder, and brought to scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.checks import InputError
from common.io.dicom_frames import Frame
from common.io.files import first_line

_INVERTED = "MONOCHROME1"
_UNITS = ("CT", "PT")
"""Modalities whose values are units, Hounsfield's and activities, however they are shown."""


def values_of(frames: Sequence[Frame]) -> np.ndarray:
    """The images of a series in the order given.

    Args:
        frames: all of one size.

    Returns:
        (columns, rows, images) float32, each image scaled by its own slope and intercept. Those that are stored as they
        are to be shown black for white (MONOCHROME1) are turned within the range of the series, except units.

    Raises:
        InputError: when a file is damaged or compressed in a way that is not read.
    """
    volume = np.empty((*frames[0].size, len(frames)), dtype=np.float32)
    for index, (stored, is_scaled) in enumerate(map(_Files().image, frames)):
        slope, intercept = (1.0, 0.0) if is_scaled else frames[index].scale
        volume[:, :, index] = stored.T.astype(np.float64) * slope + intercept
    header = frames[0].header
    if header.get("PhotometricInterpretation") == _INVERTED and header.get("Modality") not in _UNITS:
        volume = volume.min() + volume.max() - volume
    return volume


class _Files:
    """Decodes files, and keeps the last one: of enhanced objects all images lie in one."""

    def __init__(self) -> None:
        self._file = ""
        self._content: tuple[np.ndarray, bool] | None = None

    def image(self, frame: Frame) -> tuple[np.ndarray, bool]:
        """(rows, columns), and whether it is scaled already."""
        if self._content is None or self._file != frame.file:
            self._file, self._content = frame.file, _decoded(frame.file)
        values, is_scaled = self._content
        values = values if values.ndim == 2 else values[frame.number or 0]
        if values.shape != frame.size[::-1]:
            raise InputError(f"{frame.file} is damaged: its image has another size than its header says.")
        return values, is_scaled


def _decoded(file: str) -> tuple[np.ndarray, bool]:
    import pydicom
    from pydicom.pixels import get_decoder, pixel_array

    dataset = pydicom.dcmread(file, force=True)
    syntax = dataset.file_meta.get("TransferSyntaxUID", pydicom.uid.ImplicitVRLittleEndian)
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    try:
        return (pixel_array(dataset), False) if is_known else (_by_itk(file), True)
    except Exception as error:  # every decoder has its own
        reason = f"damaged or cut short ({first_line(error)}); copy it anew"
        if not is_known:
            reason = f"compressed as {syntax.name}, which is not decoded here; dcmconv or gdcmconv --raw unpacks it"
        raise InputError(f"The pixels of {file} are {reason}.") from error


def _by_itk(file: str) -> np.ndarray:
    """Also JPEG Lossless, the usual one in archives; scaled as the header says."""
    import itk

    values = np.asarray(itk.array_from_image(itk.imread(file, itk.D)))
    return values[0] if values.ndim == 3 and len(values) == 1 else values

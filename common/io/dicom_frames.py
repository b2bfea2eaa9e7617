# SPDX-License-Identifier: Apache-2.0
"""Where each image of a DICOM series lies, by its header: files of one image, and those of many (enhanced objects)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.checks import InputError

_RIGHT_ANGLE = 1e-3
"""What rounding in a header may leave of the length and the angle of two directions."""


class Frame(NamedTuple):
    """One image of a series.

    Attributes:
        header: pydicom's data set of its file.
        number: its place among the images of the file, None where it is the only one.
        size: columns and rows.
        place: (3,) millimetres LPS, the centre of the first pixel.
        axes: (2, 3), where the column and the row number grow to, LPS, of length 1.
        sides: (2,) millimetres from one column, and from one row, to the next.
        scale: slope and intercept of its values.
    """

    header: Any
    number: int | None
    size: tuple[int, int]
    place: np.ndarray
    axes: np.ndarray
    sides: np.ndarray
    scale: tuple[float, float]

    @property
    def normal(self) -> np.ndarray:
        """(3,), at right angles to the image."""
        return np.cross(*self.axes)

    @property
    def file(self) -> str:
        """Where it is read from."""
        return str(self.header.filename)


def frames_of(headers: Sequence[Any]) -> list[Frame]:
    """All images of the files of a series, in their order.

    Args:
        headers: pydicom's data sets.

    Raises:
        InputError: when one has colours, does not say where it lies, or its values need a table.
    """
    return [_frame(header, number) for header in headers for number in _numbers(header)]


def _numbers(header: Any) -> Iterator[int | None]:
    count = int(header.get("NumberOfFrames", 1) or 1)
    if "PerFrameFunctionalGroupsSequence" in header:
        yield from range(len(header.PerFrameFunctionalGroupsSequence))
    elif count == 1:
        yield None
    else:
        raise InputError(
            f"{header.filename} holds {count} images and does not say where each of them lies: export the series as "
            "files of one slice, or as an enhanced object."
        )


def _frame(header: Any, number: int | None) -> Frame:
    if "Rows" not in header or "Columns" not in header:
        raise InputError(f"{header.filename} is cut short, or no image of its series: copy it anew, or move it away.")
    if int(header.get("SamplesPerPixel", 1)) > 1:
        raise InputError(f"{header.filename} holds colours, but one number per pixel is expected.")
    place = _stated(header, number, "PlanePositionSequence", "ImagePositionPatient", 3)
    axes = _stated(header, number, "PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    between_rows, between_columns = _stated(header, number, "PixelMeasuresSequence", "PixelSpacing", 2)
    is_usable = np.abs(axes @ axes.T - np.eye(2)).max() <= _RIGHT_ANGLE and min(between_rows, between_columns) > 0
    if not is_usable:
        raise InputError(
            f"The header of {header.filename} is faulty: its rows and columns are not at right angles, or its pixels "
            "have no size."
        )
    return Frame(
        header,
        number,
        (int(header.Columns), int(header.Rows)),
        place,
        axes,
        np.array([between_columns, between_rows]),
        _scale(header, number),
    )


def _scale(header: Any, number: int | None) -> tuple[float, float]:
    if "ModalityLUTSequence" in header:
        raise InputError(f"The values of {header.filename} are numbers of a table, which is not looked at: convert it.")
    sequence = "PixelValueTransformationSequence"
    slope, intercept = (_value(header, number, sequence, f"Rescale{name}") for name in ("Slope", "Intercept"))
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _stated(header: Any, number: int | None, sequence: str, name: str, count: int) -> np.ndarray:
    values = np.array(_value(header, number, sequence, name) or (), dtype=np.float64)
    if values.shape != (count,) or not np.isfinite(values).all():
        raise InputError(
            f"{header.filename} does not state its {name}: where its pixels lie in the patient is not known, as of "
            "photographs, screenshots and X-rays; slices of a volume are expected."
        )
    return values


def _value(header: Any, number: int | None, sequence: str, name: str) -> Any:
    """A value of an image's header, in enhanced objects of the group that is its own or that all share."""
    if number is None:
        return header.get(name)
    for group in (header.PerFrameFunctionalGroupsSequence[number], *header.get("SharedFunctionalGroupsSequence", ())):
        if sequence in group:
            return group[sequence][0].get(name)
    return None

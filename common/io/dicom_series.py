# SPDX-License-Identifier: Apache-2.0
"""A DICOM series as a volume: slices sorted along their normal, checked to lie evenly, values and affine.

The axes of the array are the column, the row and the slice, as in ITK: the third one runs along the normal, which is
the cross product of the directions of columns and rows (DICOM PS3.3, C.7.6.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from common.checks import InputError
from common.io.dicom_files import headers_of
from common.io.dicom_frames import Frame, frames_of
from common.io.dicom_pixels import values_of

_SAME_PLACE = 1e-3
"""Of a pixel's side: slices that lie no further apart lie at one place."""
_SAME_AXES = 1e-3
_SAME_SIDES = 1e-4
_EVEN = 0.1
"""Of a voxel's side, how far a slice may lie from where even steps from the first to the last one put it."""
_GAP = 1.5
"""Of the usual distance, from which on a slice is missing."""
_TELLING = (
    *("TemporalPositionIdentifier", "TriggerTime", "EchoNumbers", "EchoTime", "InversionTime", "FlipAngle"),
    *("DiffusionBValue", "DiffusionGradientOrientation", "ImageType", "AcquisitionNumber", "AcquisitionTime"),
    *("ContentTime", "ReconstructionDiameter", "ConvolutionKernel"),
)
"""What tells images of one place apart, the most telling first."""


@dataclass(frozen=True)
class Series:
    """A series of parallel slices, evenly spaced.

    Attributes:
        folder: where it was found.
        frames: its images along the normal, one per index of the third axis of :attr:`voxels`.
        affine: (4, 4) float64, voxels (column, row, slice) to millimetres RAS+. The third axis leads from slice to
            slice: of a tilted gantry it is not at right angles to them.
    """

    folder: Path
    frames: tuple[Frame, ...]
    affine: np.ndarray

    @property
    def uid(self) -> str:
        """SeriesInstanceUID."""
        return str(self.frames[0].header.SeriesInstanceUID)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        return (*self.frames[0].size, len(self.frames))

    @property
    def datasets(self) -> tuple[Any, ...]:
        """pydicom's data sets without pixels, of one file each, in the order of the slices; of enhanced objects one."""
        return tuple({frame.file: frame.header for frame in self.frames}.values())

    @property
    def tilt(self) -> float:
        """Degrees between the normal of the slices and the way from one to the next, above 0 for a tilted gantry."""
        normal, step = np.cross(*self.affine.T[:2, :3]), self.affine[:3, 2]
        return math.degrees(math.atan2(float(np.linalg.norm(np.cross(normal, step))), float(normal @ step)))

    @cached_property
    def voxels(self) -> np.ndarray:
        """(columns, rows, slices) float32, decoded when first asked for; see :func:`values_of`."""
        return values_of(self.frames)


def read_series(folder: str | Path, series: str | None = None) -> Series:
    """Read one series of a folder; of its pixels nothing until they are asked for.

    Args:
        folder: with the files, by whatever names, or folders of such.
        series: SeriesInstanceUID, where the folder holds more than one series of images.

    Returns:
        The series.

    Raises:
        InputError: no images, several series; a localiser, slices of several sizes or orientations, several images at
            one place, one slice alone, a missing slice, uneven steps, headers that are faulty.
    """
    folder = Path(folder)
    headers = headers_of(folder, series)
    if any("LOCALIZER" in (header.get("ImageType") or ()) for header in headers):
        raise InputError(f"{folder} holds a localiser, by its ImageType: give the series of a volume.")
    frames = frames_of(headers)
    _check_alike(folder, frames)
    # Positions are rounded differently: the normal is that of one slice.
    heights = [float(frame.place @ frames[0].normal) for frame in frames]
    frames = [frames[index] for index in np.argsort(heights, kind="stable")]
    _check_places(folder, frames)
    step = (frames[-1].place - frames[0].place) / (len(frames) - 1)
    _check_even(folder, frames, step)
    return Series(folder, tuple(frames), _affine(frames[0], step))


def _affine(first: Frame, step: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :2] = (first.axes * first.sides[:, None]).T
    affine[:3, 2] = step
    affine[:3, 3] = first.place
    affine[:2] *= -1  # LPS to RAS
    return affine


def _check_alike(folder: Path, frames: Sequence[Frame]) -> None:
    """Refuse slices of several sizes, orientations or sizes of pixels, naming one of the fewest."""
    kinds: dict[str, list[Any]] = {
        "sizes": [frame.size for frame in frames],
        "orientations": _classes([frame.axes.ravel() for frame in frames], _SAME_AXES),
        "pixel sizes": _classes([np.log(frame.sides) for frame in frames], _SAME_SIDES),
    }
    for kind, values in kinds.items():
        counts = {value: values.count(value) for value in values}
        if len(counts) > 1:
            rare = min(counts, key=lambda value: counts[value])
            raise InputError(
                f"The slices of {folder} have {len(counts)} {kind}, as those of a localiser: {counts[rare]} of "
                f"{len(frames)}, such as {frames[values.index(rare)].file}, are unlike the others; give a folder of "
                "parallel slices alone."
            )


def _classes(values: Sequence[np.ndarray], tolerance: float) -> list[int]:
    """The number of the first value that each one is equal to."""
    firsts: list[np.ndarray] = []
    found = []
    for value in values:
        same = (number for number, first in enumerate(firsts) if np.abs(value - first).max() <= tolerance)
        found.append(next(same, len(firsts)))
        if found[-1] == len(firsts):
            firsts.append(value)
    return found


def _check_places(folder: Path, frames: Sequence[Frame]) -> None:
    """Refuse one slice alone, and several images at one place."""
    gaps = _gaps(frames)
    starts = [0, *(1 + np.flatnonzero(gaps > _SAME_PLACE * frames[0].sides.min())), len(frames)]
    places = [frames[first:last] for first, last in zip(starts, starts[1:], strict=False)]
    together = max(places, key=len)
    if len(together) > 1:
        number = {len(place) for place in places}
        count = f"{len(together)} images at each place" if len(number) == 1 else f"{len(together)} images at one place"
        raise InputError(
            f"{folder} holds {count}, such as {together[0].file} and {together[1].file}{_difference(together)}: give a "
            "folder with one image of each slice."
        )
    if len(frames) < 2:
        raise InputError(f"{folder} holds a single slice, {frames[0].file}: a volume needs two or more.")


def _difference(frames: Sequence[Frame]) -> str:
    for name in _TELLING:
        values = list(dict.fromkeys(str(frame.header.get(name)) for frame in frames))
        if len(values) > 1:
            return f", which differ in {name} ({', '.join(values[:3])})"
    return ""


def _check_even(folder: Path, frames: Sequence[Frame], step: np.ndarray) -> None:
    gaps = _gaps(frames)
    usual = float(np.median(gaps))
    widest = int(gaps.argmax())
    sides = f"{frames[widest].file} and {frames[widest + 1].file}"
    if gaps[widest] > _GAP * usual:
        missing = sum(max(round(gap / usual) - 1, 1) for gap in gaps if gap > _GAP * usual)
        raise InputError(
            f"{missing} slice(s) of {folder} are missing, or their distance changes: {sides} lie {gaps[widest]:.4g} mm "
            f"apart, others {usual:.4g} mm; complete the series."
        )
    places = np.stack([frame.place for frame in frames])
    even = places[0] + np.arange(len(frames))[:, None] * step
    away = np.linalg.norm(places - even, axis=1)
    if away.max() > _EVEN * min(usual, *frames[0].sides):
        raise InputError(
            f"The slices of {folder} do not lie evenly: their distance is {gaps.min():.4g} to {gaps.max():.4g} mm, and "
            f"{frames[int(away.argmax())].file} lies {away.max():.3g} mm off; resample them first."
        )


def _gaps(frames: Sequence[Frame]) -> np.ndarray:
    return np.diff([float(frame.place @ frames[0].normal) for frame in frames])

# SPDX-License-Identifier: Apache-2.0
"""What a person asks to be registered: two scans, or the listed pairs of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.checks import InputError
from common.data.guides import LABEL
from common.data.readers.listing import LANDMARK_COORDINATES, LANDMARKS, MASK
from common.data.subjects import read_section
from common.io.dicom_files import is_there, is_uid
from common.io.dicom_image import series_path
from common.io.held_points import HeldPoints
from common.io.images import Image

_SIDES = ("moving", "fixed")
_NAMES = {LABEL: "label map", MASK: "mask", LANDMARKS: "list of landmarks"}
_Scan = str | Image | HeldPoints
"""A file, or an image or points in memory."""
_HELD = (Image, HeldPoints)
_Given = Mapping[str, tuple[_Scan | None, _Scan | None]]
"""Files (moving, fixed) by what they hold."""


class Request(NamedTuple):
    """Subjects, with labels where there are any, and (moving, fixed) indices into them."""

    subjects: list[dict[str, Any]]
    pairs: list[tuple[int, int]]


def registration_request(
    dataset_dir: str | Path,
    reader: str = "datalist",
    section: str = "test",
    moving: _Scan | None = None,
    fixed: _Scan | None = None,
    moving_label: _Scan | None = None,
    fixed_label: _Scan | None = None,
    moving_mask: _Scan | None = None,
    fixed_mask: _Scan | None = None,
    moving_landmarks: _Scan | None = None,
    fixed_landmarks: _Scan | None = None,
    landmark_coordinates: str = "voxel",
    guides: Sequence[str] = (),
    moving_series: str | None = None,
    fixed_series: str | None = None,
) -> Request:
    """The images to register.

    Args:
        dataset_dir: folder of the data set; not looked at when two files are given.
        reader: layout of the data set.
        section: section whose pairs are registered.
        moving: image that is warped: a file, a series of DICOM slices by its folder, see
            :func:`common.io.dicom_image.open_series`, or an image in memory, as label maps and masks may be, too.
        fixed: image that stays.
        moving_label: label map on the grid of ``moving``, warped like its image.
        fixed_label: label map on the grid of ``fixed``, to measure the overlap with.
        moving_mask: on the grid of ``moving``, other than 0 where it counts.
        fixed_mask: the same of ``fixed``.
        moving_landmarks: points of ``moving``, see :class:`common.data.LoadLandmarksd`.
        fixed_landmarks: those of ``fixed``, line by line the same places.
        landmark_coordinates: of tables of points that do not say their own.
        guides: what the optimisation on a pair looks at beside the images, of :data:`common.data.guides.GUIDES`: labels
            and landmarks then have to be there for both, and without it a mask has no use.
        moving_series: SeriesInstanceUID, where ``moving`` is a folder of several series.
        fixed_series: the same of ``fixed``.

    Returns:
        Subjects and pairs; the path of a series ends in its UID.

    Raises:
        InputError: when only one image is given, a series cannot be read or chosen, a file does not exist, something is
            given without its image, landmarks without the others, a mask without a use, or labels or landmarks are
            missing that a pair is guided by; and as ``read_section``.
    """
    given = {
        MASK: (moving_mask, fixed_mask),
        LABEL: (moving_label, fixed_label),
        LANDMARKS: (moving_landmarks, fixed_landmarks),
    }
    series = {"moving": moving_series, "fixed": fixed_series}
    for (side, uid), image in zip(series.items(), (moving, fixed), strict=True):
        if uid is not None and image is None:
            raise InputError(f"--{side}_series was given without --{side}, the folder that holds the series.")
    if moving is None and fixed is None:
        for kind, files in given.items():
            if any(file is not None for file in files):
                raise InputError(f"A {_NAMES[kind]} was given without its image; give --moving and --fixed, too.")
        listing = read_section(dataset_dir, reader, section)
        _check_listed(listing.subjects, guides)
        return Request(listing.subjects, listing.every_pair())
    if moving is None or fixed is None:
        one, missing = ("moving", "fixed") if fixed is None else ("fixed", "moving")
        raise InputError(f"--{one} was given without --{missing}; a pair needs both files.")
    _check_given((moving, fixed), given, guides)
    names = _names((moving, fixed), (moving_series, fixed_series))
    subjects = _subjects((_place(moving, moving_series), _place(fixed, fixed_series)), names, given)
    if moving_landmarks is not None:
        subjects = [{**subject, LANDMARK_COORDINATES: landmark_coordinates} for subject in subjects]
    return Request(subjects, [(0, 1)])


def _names(images: tuple[_Scan, _Scan], series: tuple[str | None, str | None]) -> list[str]:
    """Of the files or folders, where both have one name with that of the folder around them."""
    paths = [Path(str(image)) for image in images]
    names = [_name(path, uid) for path, uid in zip(paths, series, strict=True)]
    if names[0] == names[1]:
        names = [f"{path.resolve().parent.name}-{name}" for path, name in zip(paths, names, strict=True)]
    return names


def _name(path: Path, series: str | None) -> str:
    """A file without its endings, a folder, with the UID of the series where one was chosen."""
    if path.is_dir():
        return path.resolve().name if series is None else f"{path.resolve().name}-{series}"
    return f"{path.resolve().parent.name}-{path.name}" if is_uid(path.name) else path.name.split(".")[0]


def _subjects(images: tuple[_Scan, _Scan], names: list[str], given: _Given) -> list[dict[str, Any]]:
    subjects = [{"id": name, "image": image} for name, image in zip(names, images, strict=True)]
    for kind, files in given.items():
        for subject, file in zip(subjects, files, strict=True):
            if file is not None:
                subject[kind] = file if isinstance(file, _HELD) else str(file)
    return subjects


def _place(image: _Scan, series: str | None) -> _Scan:
    return image if isinstance(image, _HELD) else series_path(image, series)


def _check_given(images: tuple[_Scan, _Scan], given: _Given, guides: Sequence[str]) -> None:
    """Refuse files that do not exist or would be of no use, and the lack of some that are needed."""
    for kind, files in {"image": images, **given}.items():
        for side, file in zip(_SIDES, files, strict=True):
            if file is not None and not isinstance(file, _HELD) and not is_there(file):
                raise InputError(f"The {side} {_NAMES.get(kind, kind)} {file} does not exist.")
    for kind, files in given.items():
        there = [side for side, file in zip(_SIDES, files, strict=True) if file is not None]
        if len(there) == 1 and (kind == LANDMARKS or (kind == LABEL and LABEL in guides)):
            missing = next(side for side in _SIDES if side not in there)
            raise InputError(f"--{there[0]}_{kind} was given without --{missing}_{kind}; both images need one.")
        if not there and kind != MASK and kind in guides:
            raise InputError(
                f"The pair is to be guided by a {_NAMES[kind]} of each image, which neither has: give "
                f"--moving_{kind} and --fixed_{kind}."
            )
        if there and kind == MASK and MASK not in guides:
            raise InputError(
                f"--{there[0]}_{MASK} was given, but nothing looks at it: masks count in an optimisation on the pair "
                "itself, --io_steps above 0, and not where the bundle has a loss of its own for it."
            )


def _check_listed(subjects: Sequence[dict[str, str]], guides: Sequence[str]) -> None:
    for kind in (LABEL, LANDMARKS):
        without = [subject["image"] for subject in subjects if kind not in subject]
        if kind in guides and without:
            raise InputError(
                f"Pairs are to be guided by a {_NAMES[kind]} of each image, but {without[0]} has none, as "
                f"{len(without)} of {len(subjects)}."
            )


def pair_name(moving_id: str, fixed_id: str) -> str:
    """How the files of a pair begin."""
    return f"{moving_id}_to_{fixed_id}"

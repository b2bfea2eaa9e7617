# SPDX-License-Identifier: Apache-2.0
"""Which DICOM files of a folder belong together: found by their content, grouped by series, one series chosen."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.file_kinds import is_dicom
from common.io.files import first_line

_LOGGER = logging.getLogger(__name__)
_UNMARKED = (".dcm", ".ima")
"""Endings of files that may lack the mark of DICOM, as old ones do."""
_DIRECTORY = "1.2.840.10008.1.3.10"
"""Class of DICOMDIR, the table of contents of a disc."""
_NO_SCANS = ("SEG", "REG", "RTSTRUCT", "RTDOSE", "RTPLAN", "SR", "PR", "KO", "DOC")
"""Modalities of what is said about scans, of which some have voxels of their own."""
_STORED = "1.2.840.10008.5.1.4.1.1."
"""How the classes of what is stored in series begin."""
_UID = re.compile(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2,}")
_LISTED = 5


def is_uid(value: Any) -> bool:
    """Whether something is the text of a UID (DICOM PS3.5, 9.1), of three numbers or more."""
    return isinstance(value, str) and _UID.fullmatch(value) is not None


def dicom_place(path: str | Path) -> tuple[Path, str | None] | None:
    """The folder and the series that a path means: a folder, FOLDER/UID, or one file of a series in its folder.

    Returns:
        None where the path is something else; the series is None where the folder alone is named.

    Raises:
        InputError: when the path is a DICOM file that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return path, None
    if path.is_file():
        # A file named as NIfTI is taken for what it says, and refused there.
        header = read_header(path) if is_dicom(path) and ".nii" not in path.suffixes else None
        uid = None if header is None else header.get("SeriesInstanceUID")
        return None if uid is None else (path.parent, str(uid))
    if is_uid(path.name) and path.parent.is_dir():
        return path.parent, path.name
    return None


def is_there(path: str | Path) -> bool:
    """Whether a path is one of a file or a folder, or FOLDER/UID of a folder that is there."""
    return Path(path).exists() or dicom_place(path) is not None


def headers_of(folder: Path, series: str | None = None) -> list[Any]:
    """The headers of one series of images, without their pixels.

    Args:
        folder: looked at with all folders within. Files of other kinds do not count, by whatever name, and neither do
            DICOMDIR, reports, segmentations and their like.
        series: UID of the series; None where there is one alone.

    Returns:
        pydicom's data sets in the order of their files' names, each image once; ``filename`` is its file.

    Raises:
        InputError: when there are no images, several series of which none is named, or no such series, and for a file
            that cannot be read.
    """
    found = _series_in(folder)
    scans = {uid: headers for uid, headers in found.items() if _is_scan(headers)}
    if not scans and found:
        kinds = sorted({str(headers[0].get("Modality", "unknown")) for headers in found.values()})
        raise InputError(f"{folder} holds no DICOM images but {', '.join(kinds)}: give the folder of a scan's slices.")
    if not scans:
        raise InputError(f"{folder} is a folder without DICOM images: give an image's file or the folder of a series.")
    if series is not None and series not in scans:
        raise InputError(f"{folder} holds no images of the series {series}, but {_listed(scans)}.")
    if series is None and len(scans) > 1:
        raise InputError(
            f"{folder} holds {len(scans)} DICOM series, {_listed(scans)}: name the one that is meant, as "
            f"{folder / next(iter(scans))}."
        )
    return _each_once(folder, scans[series or next(iter(scans))])


def read_header(path: Path) -> Any:
    """A DICOM file as pydicom's data set, without its pixels; None where it lacks the mark and is no image either.

    Raises:
        InputError: when it cannot be read.
    """
    import pydicom

    marked = is_dicom(path)
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=not marked)
    except Exception as error:  # the reader has many of its own
        if not marked:
            return None
        raise InputError(f"{path} cannot be read as DICOM ({first_line(error)}); copy it anew.") from error
    return header if marked or "SOPClassUID" in header else None


def _series_in(folder: Path) -> dict[str, list[Any]]:
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        if not is_dicom(path) and path.suffix.lower() not in _UNMARKED:
            continue
        header = read_header(path)
        kind = "" if header is None else str(header.file_meta.get("MediaStorageSOPClassUID", ""))
        if header is None or kind == _DIRECTORY:
            continue
        if "SeriesInstanceUID" in header:
            found[str(header.SeriesInstanceUID)].append(header)
        elif kind.startswith(_STORED):
            raise InputError(f"{path} is cut short, its header ends early; copy it anew.")
    return dict(found)


def _is_scan(headers: Sequence[Any]) -> bool:
    """Whether a series holds images; files of it that are cut short may be among them."""
    return any("Rows" in header and str(header.get("Modality", "")) not in _NO_SCANS for header in headers)


def _each_once(folder: Path, headers: Sequence[Any]) -> list[Any]:
    """Copies of one file, which some exports make, are one image."""
    once = {str(header.get("SOPInstanceUID", header.filename)): header for header in reversed(headers)}
    if len(once) < len(headers):
        _LOGGER.info("%s: %d of %d files are copies of others.", folder, len(headers) - len(once), len(headers))
    return list(reversed(once.values()))


def _listed(scans: Mapping[str, Sequence[Any]]) -> str:
    parts = [
        f"{uid} ({headers[0].get('SeriesDescription', 'no description')}, {len(headers)} files)"
        for uid, headers in scans.items()
    ]
    rest = [] if len(parts) <= _LISTED else [f"{len(parts) - _LISTED} others"]
    return ", ".join([*parts[:_LISTED], *rest])

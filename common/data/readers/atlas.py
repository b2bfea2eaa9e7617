# SPDX-License-Identifier: Apache-2.0
"""Data sets in which one atlas is registered with every scan: folders of scans beside the file of the atlas."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common.data.readers.listing import Listing, Subject, file_stem

SCANS = (".pkl", ".nii.gz", ".nii")
"""Endings of files of scans; a pickle holds its label map, too."""
_LABELS = ("_seg", "_label")
"""What the name of a label map has behind that of its scan."""


def folders(dataset_dir: Path) -> dict[str, Path]:
    """The folders in a folder, by their names in small letters."""
    return {path.name.lower(): path for path in sorted(dataset_dir.iterdir()) if path.is_dir()}


def scan_files(folder: Path) -> list[Path]:
    """The scans in a folder, in the order of their names; label maps and hidden files are left out."""
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(SCANS)]
    return [path for path in files if not (path.name.startswith(".") or file_stem(path).endswith(_LABELS))]


def scan(image: Path) -> Subject:
    """Subject of a pickle (image, label), or of a NIfTI file and ``NAME_seg`` or ``NAME_label`` beside it."""
    subject = {"id": file_stem(image), "image": str(image)}
    beside = (image.with_name(f"{file_stem(image)}{mark}{ending}") for mark in _LABELS for ending in SCANS[1:])
    label = image if image.name.endswith(".pkl") else next((path for path in beside if path.is_file()), None)
    return subject if label is None else {**subject, "label": str(label)}


def first_file(dataset_dir: Path, names: Iterable[str]) -> Path | None:
    """The first of some files that is there."""
    return next((dataset_dir / name for name in names if (dataset_dir / name).is_file()), None)


def atlas_listing(atlas: Subject, scans: Iterable[Subject]) -> Listing:
    """The atlas as moving image of every scan, which is the fixed one; the atlas among the scans is left out."""
    others = [subject for subject in scans if subject["id"] != atlas["id"]]
    return Listing([atlas, *others], [(0, place) for place in range(1, len(others) + 1)])

# SPDX-License-Identifier: Apache-2.0
"""LPBA40: 40 brains with 56 structures drawn by hand, in two layouts.

* aligned, with the first brain as atlas: ``S01.pkl`` and pickles (image, label) in ``Train`` and ``Test``, as mmipt
  trains VoxelMorph; or ``fixed.nii.gz``, which is S01, with ``train/S11.delineation.skullstripped.nii.gz``, ``test``,
  and ``label/S11.delineation.structure.label.nii.gz``. The folders tell who trains; Test also validates, as published.
* delineation space, in which LONI gives the label maps out: ``S01/S01.delineation.skullstripped.nii.gz`` (or
  ``S01.delineation.brain.bfc.nii.gz``, as SITReg prepares it) and ``S01/S01.delineation.structure.label.nii.gz``, in
  the data folder or in ``delineation_space``. Sections are those of SITReg: 25 brains train, 5 validate, 10 test, every
  ordered pair counts, and S01 is the first to train with: the atlas of the pair strategy "atlas".

Sources: D. Shattuck et al., NeuroImage 39, 2008; repositories huaibovip/mmipt and honkamj/SITReg.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from common.checks import InputError
from common.data.readers.atlas import atlas_listing, first_file, folders, scan, scan_files
from common.data.readers.listing import Listing, Subject, refuse_list
from common.data.splits import load_split

_logger = logging.getLogger(__name__)
_KEYS = {"training": "train", "validation": "validate", "test": "test"}
_FOLDERS = {"training": "train", "validation": "test", "test": "test"}
_NIFTI = (".nii.gz", ".nii")
_ATLAS = ("S01.pkl", *(f"{name}{ending}" for name in ("fixed", "S01", "atlas") for ending in _NIFTI), "atlas.pkl")
_IMAGES, _LABEL = ("skullstripped", "brain.bfc"), "structure.label"
LABELS = (
    *(*range(21, 35), *range(41, 51), *range(61, 69), *range(81, 93)),
    *(101, 102, 121, 122, *range(161, 167)),
)
"""The 54 structures that the tables of atlas and scan are of: all but cerebellum and brain stem."""
LEFT_OUT = (181, 182)
"""Cerebellum and brain stem, which label maps have, too."""


def read_lpba40(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of the folder, in either layout.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: not for this reader, whose sections are folders or published; use the reader ``datalist``.

    Returns:
        Listing per section; sections without subjects are absent. In the aligned layout S01 is the first subject of
        each, and the moving image of every pair. A NIfTI file without a label map has no label.

    Raises:
        InputError: neither layout is found, the atlas is missing, the scans are Analyze files, or a list of one's own
            is asked for.
    """
    refuse_list("lpba40", dataset_json)
    found = folders(dataset_dir)
    if {"train", "test"} & found.keys():
        listings = _aligned(dataset_dir, found)
    else:
        listings = _delineation(dataset_dir)
    return {section: listing for section, listing in listings.items() if listing.subjects}


def _aligned(dataset_dir: Path, found: dict[str, Path]) -> dict[str, Listing]:
    atlas = first_file(dataset_dir, _ATLAS)
    if atlas is None:
        raise InputError(
            f"The folder {dataset_dir} has no atlas; expected S01.pkl, fixed.nii.gz or S01.nii.gz beside the "
            "folders of scans."
        )
    labels = sorted(found["label"].iterdir()) if "label" in found else []
    maps = {number: path for path in labels if path.name.endswith(_NIFTI) and (number := _number(path))}
    first = {**_aligned_scan(atlas, maps, "S01"), "id": "S01"}
    listings = {
        section: atlas_listing(first, [_aligned_scan(image, maps) for image in scan_files(found[name])])
        for section, name in _FOLDERS.items()
        if name in found
    }
    return {section: listing for section, listing in listings.items() if listing.pairs}


def _aligned_scan(image: Path, maps: dict[str, Path], number: str | None = None) -> Subject:
    subject, number = scan(image), number or _number(image)
    if number is None:
        return subject
    label = {} if "label" in subject or number not in maps else {"label": str(maps[number])}
    return {**subject, "id": number, **label}


def _number(path: Path) -> str | None:
    """The number in the name of a file, such as S01."""
    match = re.match(r"S\d\d(?!\d)", path.name)
    return match and match.group()


def _delineation(dataset_dir: Path) -> dict[str, Listing]:
    inner = dataset_dir / "delineation_space"
    top = inner if inner.is_dir() else dataset_dir
    people = {folder.name: subject for folder in sorted(top.glob("S[0-9][0-9]")) if (subject := _person(folder))}
    if not people:
        if any(top.glob("S[0-9][0-9]/*.hdr")):
            raise InputError(
                f"The folder {top} holds Analyze files, whose headers do not say how a scan lies; save them under the "
                "same names as NIfTI (.nii.gz), the array axes towards the left, the back and the top of the head."
            )
        raise InputError(
            f"The folder {dataset_dir} is no known form of LPBA40; expected S01.pkl or fixed.nii.gz beside folders "
            "train and test, or folders SNN with SNN.delineation.skullstripped.nii.gz."
        )
    split = load_split("lpba40_sitreg")
    missing = [person for key in _KEYS.values() for person in split[key] if person not in people]
    if missing:
        _logger.warning("%s lacks %d of the 40 brains, such as %s.", top, len(missing), missing[0])
    return {
        section: Listing([people[person] for person in split[key] if person in people])
        for section, key in _KEYS.items()
    }


def _person(folder: Path) -> Subject | None:
    """One brain in delineation space; None where its folder has no scan."""
    name = f"{folder.name}.delineation"
    image = first_file(folder, (f"{name}.{kind}{ending}" for kind in _IMAGES for ending in _NIFTI))
    label = first_file(folder, (f"{name}.{_LABEL}{ending}" for ending in _NIFTI))
    if image is None:
        return None
    subject = {"id": folder.name, "image": str(image)}
    return subject if label is None else {**subject, "label": str(label)}

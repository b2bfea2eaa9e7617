# SPDX-License-Identifier: Apache-2.0
"""OASIS-1 brains in the three layouts in which they are passed around.

* Learn2Reg 2021 task 3: ``OASIS_dataset.json``, ``imagesTr/OASIS_NNNN_0000.nii.gz``, ``labelsTr``. Training 0001-0394,
  validation 0395-0414 with the pairs (fixed n, moving n + 1) of the evaluation configuration, test from 0415.
* neurite: ``OASIS_OAS1_NNNN_MR1/{aligned_norm,aligned_seg35}.nii.gz``. Its 414 people are split as in the dual-pyramid
  benchmark (``oasis_dp_v1``: 300/30/84, with pair lists), whose ids are the ranks of the OAS1 numbers among the 414 and
  the numbers of Learn2Reg; :func:`read_oasis_dp` splits the layout of Learn2Reg so, too.
  A part of the people is split by order: the last fifth (at least two) for test, the tenth before it (at least two) for
  validation, the rest for training, and no pair lists.
* pickles of TransMorph and EOIR: ``p_NNNN.pkl`` (image, label) for training, ``p_AAAA_BBBB.pkl`` (moving, fixed, moving
  label, fixed label) for validation, in the folder itself or in train, val and test below it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from common.checks import InputError
from common.data.readers.datalist import find_datalist, read_datalist
from common.data.readers.listing import SECTIONS, Listing, Subject, file_stem, make_subject, published_listings

_logger = logging.getLogger(__name__)
_PEOPLE = 414
_LAST_TRAINING, _LAST_VALIDATION = 394, 414
_PICKLE_FOLDERS = {"training": ("train", "training"), "validation": ("val", "validation"), "test": ("test",)}


def read_oasis(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of an OASIS folder in any of the three layouts.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: data list of the Learn2Reg layout, if it is not ``OASIS_dataset.json``.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: none of the layouts is found, or the data list is damaged.
    """
    if dataset_json is not None or (dataset_dir / "OASIS_dataset.json").is_file():
        listings = _read_learn2reg(dataset_dir, dataset_json or "OASIS_dataset.json")
    elif any(dataset_dir.glob("OASIS_OAS1_*_MR1")):
        listings = _read_neurite(dataset_dir)
    elif _pickles(dataset_dir):
        listings = _read_pickles(dataset_dir)
    elif any(dataset_dir.glob("*.json")):
        listings = _read_learn2reg(dataset_dir, find_datalist(dataset_dir).name)
    else:
        raise InputError(
            f"The folder {dataset_dir} is no known form of OASIS; expected OASIS_dataset.json with imagesTr and "
            "labelsTr, folders OASIS_OAS1_NNNN_MR1, or p_NNNN.pkl files (also in train, val and test)."
        )
    return {section: listings[section] for section in SECTIONS if section in listings and listings[section].subjects}


def read_oasis_dp(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of the dual-pyramid benchmark: 300 people train, 30 pairs validate, 200 pairs test.

    H. Liu et al., MIDL 2025 short papers; repository HengjieLiu/Unsupervised-DL-DIR-Revisited.

    Args:
        dataset_dir: folder of the release of Learn2Reg, or of neurite with all its 414 people.
        dataset_json: data list of the Learn2Reg layout, if it is not ``OASIS_dataset.json``.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: neither layout is found, the data list is damaged, or people of neurite are missing.
    """
    if dataset_json is not None or (dataset_dir / "OASIS_dataset.json").is_file():
        listed = read_datalist(dataset_dir, dataset_json or "OASIS_dataset.json")
        people = {_number(subject): subject for listing in listed.values() for subject in listing.subjects}
        listings = _benchmark(dataset_dir, people)
    elif len([*dataset_dir.glob("OASIS_OAS1_*_MR1")]) >= _PEOPLE:
        listings = _read_neurite(dataset_dir)
    else:
        raise InputError(
            f"The folder {dataset_dir} does not tell the people of the dual-pyramid benchmark; expected "
            f"OASIS_dataset.json with imagesTr and labelsTr, or all {_PEOPLE} folders OASIS_OAS1_NNNN_MR1. For other "
            "forms of OASIS use --reader oasis."
        )
    return {section: listing for section, listing in listings.items() if listing.subjects}


def _number(subject: Subject) -> int:
    match = re.search(r"OASIS_(\d+)$", subject["id"])
    if match is None:
        raise InputError(f"{subject['image']} is not named OASIS_NNNN_0000.nii.gz; use the reader 'datalist'.")
    return int(match.group(1))


def _read_learn2reg(dataset_dir: Path, dataset_json: str) -> dict[str, Listing]:
    """The sections follow the people's numbers: the official list has the validation people under training, too.

    Pairs are the listed ones; without any, validation and test have those of the evaluation configuration.
    """
    listed = read_datalist(dataset_dir, dataset_json)
    people = {_number(s): s for listing in listed.values() for s in listing.subjects}
    bounds = {
        "training": range(1, _LAST_TRAINING + 1),
        "validation": range(_LAST_TRAINING + 1, _LAST_VALIDATION + 1),
        "test": range(_LAST_VALIDATION + 1, max(people, default=0) + 1),
    }
    listings = {}
    for section, numbers in bounds.items():
        present = [number for number in numbers if number in people]
        chain = [(i + 1, i) for i in range(len(present) - 1) if present[i + 1] == present[i] + 1]
        pairs = _pairs_among(present, section, listed.get(section, Listing()))
        listings[section] = Listing([people[n] for n in present], pairs or (section != "training" and chain) or None)
    return listings


def _pairs_among(present: list[int], section: str, listing: Listing) -> list[tuple[int, int]]:
    """The pairs that a list has for a section, as places in ``present``."""
    place = {number: i for i, number in enumerate(present)}
    numbers = [(_number(listing.subjects[m]), _number(listing.subjects[f])) for m, f in listing.pairs or ()]
    for number in (number for pair in numbers for number in pair):
        if number not in place:
            raise InputError(
                f"The data list has OASIS_{number:04d} in a {section} pair, but by its number this person is not of "
                "that section; to go by the list use --reader datalist."
            )
    return [(place[moving], place[fixed]) for moving, fixed in numbers]


def _read_neurite(dataset_dir: Path) -> dict[str, Listing]:
    folders = sorted(p for p in dataset_dir.glob("OASIS_OAS1_*_MR1") if re.fullmatch(r"OASIS_OAS1_\d+_MR1", p.name))
    people = [_neurite_subject(folder) for folder in folders]
    if len(people) != _PEOPLE:
        return _split_by_order(dataset_dir, people)
    return _benchmark(dataset_dir, dict(enumerate(people, start=1)))


def _benchmark(dataset_dir: Path, people: dict[int, Subject]) -> dict[str, Listing]:
    by_id = {f"{number:04d}": subject for number, subject in people.items()}
    return published_listings(dataset_dir, "oasis_dp_v1", by_id, "pairs_test_200")


def _neurite_subject(folder: Path) -> Subject:
    label = folder / "aligned_seg35.nii.gz"
    subject = make_subject(folder / "aligned_norm.nii.gz", label if label.is_file() else None)
    return {**subject, "id": folder.name}


def _split_by_order(dataset_dir: Path, people: list[Subject]) -> dict[str, Listing]:
    test, validation = max(2, len(people) // 5), max(2, len(people) // 10)
    training = max(0, len(people) - test - validation)
    _logger.warning(
        "%s holds %d of the %d OASIS people, so the published split does not apply: split by order into %d training, "
        "%d validation and %d test people.",
        *(dataset_dir, len(people), _PEOPLE, training, validation, test),
    )
    cut = training + validation
    return {
        "training": Listing(people[:training]),
        "validation": Listing(people[training:cut]),
        "test": Listing(people[cut:]),
    }


def _pickles(dataset_dir: Path) -> dict[str, list[Path]]:
    """Pickle files per section; in one common folder the names tell training (one number) from validation (two)."""
    found: dict[str, list[Path]] = {}
    folders = {p.name.lower(): p for p in sorted(dataset_dir.iterdir()) if p.is_dir()}
    for section, names in _PICKLE_FOLDERS.items():
        files = [file for name in names if name in folders for file in sorted(folders[name].glob("*.pkl"))]
        if files:
            found[section] = files
    if not found:
        files = sorted(dataset_dir.glob("*.pkl"))
        two_numbers = [file for file in files if len(_pickle_numbers(file)) == 2]
        found = {"training": [file for file in files if file not in two_numbers], "validation": two_numbers}
    return {section: files for section, files in found.items() if files}


def _pickle_numbers(file: Path) -> list[str]:
    return re.findall(r"_(\d+)", file_stem(file))


def _read_pickles(dataset_dir: Path) -> dict[str, Listing]:
    listings = {}
    for section, files in _pickles(dataset_dir).items():
        subjects: list[Subject] = []
        pairs: list[tuple[int, int]] = []
        for file in files:
            numbers = _pickle_numbers(file)
            if len(numbers) == 2:
                # Submissions of Learn2Reg are named after these files, fixed image first.
                for number, role in zip(numbers, ("fixed", "moving"), strict=True):
                    subjects.append({"id": number, "image": str(file), "label": str(file), "role": role})
                pairs.append((len(subjects) - 1, len(subjects) - 2))
            else:
                name = numbers[0] if len(numbers) == 1 else file_stem(file)
                subjects.append({"id": name, "image": str(file), "label": str(file)})
        listings[section] = Listing(subjects, pairs or None)
    return listings

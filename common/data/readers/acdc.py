# SPDX-License-Identifier: Apache-2.0
"""ACDC: end-diastolic (ED) and end-systolic (ES) cardiac MR of 150 patients, in two layouts.

* original: folders ``patientNNN`` with ``Info.cfg``, whose lines "ED: 1" and "ES: 12" choose the frames, and
  ``patientNNN_frameFF.nii.gz`` with label maps ``..._gt.nii.gz``; in the data folder itself or below ``training``,
  ``testing``, ``database/training`` and ``database/testing``;
* prepared: ``patientNNN_{ed,es}_{img,seg}.nii.gz`` in the data folder or below ``train`` and ``test``.

Sections are those of EOIR's split: of each block of 20 patients the first 17 train, the last 3 validate; 101-150 test.
A ``dataset.json`` beside the patients, with lists "train", "val" and "test" of {"id": "patientNNN"}, takes its place;
"spacing_mm" in an entry, three millimetres per voxel, stands for that of the patient's headers where these lost it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.listed_spacing import SPACING, spacing_text
from common.data.readers.datalist import load_json
from common.data.readers.listing import Listing, Subject
from common.data.splits import load_split

_logger = logging.getLogger(__name__)
PHASES = ("ed", "es")
_KEYS = {"training": "train", "validation": "val", "test": "test"}
_ORIGINAL = ("", "training", "testing", "database/training", "database/testing")
_PREPARED = ("", "train", "test")
_Split = dict[str, dict[str, Subject]]
"""Per section: patient to what the split says of it."""


def read_acdc(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of an ACDC folder.

    A subject is one frame, with the id "patientNNN_ed" or "patientNNN_es". Pairs stay within a patient: validation and
    test list both directions, training lists (moving ED, fixed ES), which the sampler may turn around.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: name of the file with the split; default: ``dataset.json`` if it has a list "train", else the
            published split.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: neither layout is found, ``Info.cfg`` is missing or lacks ED or ES, a frame's file or a listed
            patient is missing, or the split cannot be read.
    """
    folders = _patients(dataset_dir)
    if not folders:
        raise InputError(
            f"The folder {dataset_dir} is no known form of ACDC; expected folders patientNNN with Info.cfg (also below "
            "training and testing), or files patientNNN_ed_img.nii.gz (also below train and test)."
        )
    split = _own_split(dataset_dir, dataset_json, folders)
    if split is None:
        split = _published_split(folders)
    listings = {}
    for section, patients in split.items():
        subjects = [{**frame, **facts} for id, facts in patients.items() for frame in _frames(id, folders[id])]
        forward = [(2 * i, 2 * i + 1) for i in range(len(patients))]
        both = [direction for ed, es in forward for direction in ((ed, es), (es, ed))]
        listings[section] = Listing(subjects, forward if section == "training" else both)
    return {section: listing for section, listing in listings.items() if listing.subjects}


def _patients(dataset_dir: Path) -> dict[str, Path]:
    """Folder that holds the files of each patient, original layout first."""
    found: dict[str, Path] = {}
    for name in _ORIGINAL:
        for folder in sorted((dataset_dir / name).glob("patient*")):
            if folder.is_dir() and re.fullmatch(r"patient\d{3}", folder.name):
                found.setdefault(folder.name, folder)
    if not found:
        for name in _PREPARED:
            for file in sorted((dataset_dir / name).glob("patient*_*_img.nii.gz")):
                match = re.fullmatch(r"(patient\d{3})_e[ds]_img\.nii\.gz", file.name)
                if match:
                    found.setdefault(match.group(1), file.parent)
    return found


def _own_split(dataset_dir: Path, dataset_json: str | None, folders: Iterable[str]) -> _Split | None:
    path = dataset_dir / (dataset_json or "dataset.json")
    if not path.is_file():
        if dataset_json is not None:
            raise InputError(f"The split {path} does not exist; give the name of a JSON file inside {dataset_dir}.")
        return None
    content = load_json(path)
    if "train" not in content and dataset_json is None:
        _logger.info("%s has no list 'train' of patients: the published split is used.", path)
        return None
    split = {section: _listed(path, content.get(key, [])) for section, key in _KEYS.items()}
    missing = sorted({patient for patients in split.values() for patient in patients} - set(folders))
    if missing:
        raise InputError(
            f"The split {path} names {missing[0]}, but {dataset_dir} has no such patient; complete either."
        )
    return split


def _listed(path: Path, entries: Any) -> dict[str, Subject]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise InputError(
            f"The split {path} must have lists of patients {{'id': 'patientNNN'}} under train, val and test."
        )
    return {str(entry["id"]): _facts(path, entry) for entry in entries}


def _facts(path: Path, entry: dict[str, Any]) -> Subject:
    spacing = entry.get("spacing_mm")
    if spacing is None:
        return {}
    if not (
        isinstance(spacing, list) and len(spacing) == 3 and all(isinstance(s, int | float) and s > 0 for s in spacing)
    ):
        raise InputError(
            f"'spacing_mm' of {entry['id']} in {path} is {spacing}; three millimetres above 0 are expected."
        )
    return {SPACING: spacing_text(spacing)}


def _published_split(folders: Iterable[str]) -> _Split:
    published = load_split("acdc_eoir")
    present = sorted(folders)
    return {
        section: {patient: {} for patient in present if int(patient.removeprefix("patient")) in published[key]}
        for section, key in _KEYS.items()
    }


def _frames(patient: str, folder: Path) -> list[Subject]:
    """The ED and the ES frame of a patient, with labels where there are files of labels."""
    if folder.name == patient:
        numbers = _frame_numbers(folder)
        names = [f"{patient}_frame{number:02d}" for number in numbers]
        files = [(f"{name}.nii.gz", f"{name}_gt.nii.gz") for name in names]
        source = "its Info.cfg names that frame"
    else:
        files = [(f"{patient}_{phase}_img.nii.gz", f"{patient}_{phase}_seg.nii.gz") for phase in PHASES]
        source = "a patient needs both ED and ES"
    subjects = []
    for phase, (image, label) in zip(PHASES, files, strict=True):
        if not (folder / image).is_file():
            raise InputError(f"The folder {folder} has no {image}, but {source}; copy the patient anew.")
        subject = {"id": f"{patient}_{phase}", "image": str(folder / image)}
        if (folder / label).is_file():
            subject["label"] = str(folder / label)
        subjects.append(subject)
    return subjects


def _frame_numbers(folder: Path) -> list[int]:
    path = folder / "Info.cfg"
    if not path.is_file():
        raise InputError(f"The folder {folder} has no Info.cfg, which tells the ED and ES frames; copy it anew.")
    text = path.read_text(encoding="utf-8", errors="replace")
    found = dict(re.findall(r"^\s*(ED|ES)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    lacking = [phase for phase in ("ED", "ES") if phase not in found]
    if lacking:
        raise InputError(
            f"{path} does not say which frame is {' and '.join(lacking)}; it needs lines such as 'ED: 1' and 'ES: 12'."
        )
    return [int(found["ED"]), int(found["ES"])]

# SPDX-License-Identifier: Apache-2.0
"""Folders described by a JSON in the style of MONAI data lists and Learn2Reg."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.readers.listing import SECTIONS, Listing, Subject, distinguish_ids, make_subject

_logger = logging.getLogger(__name__)
_PAIR_KEYS = {"validation": "registration_val", "test": "registration_test"}


def read_datalist(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a folder with a data list.

    Accepted entries: {"image", "label" or "seg"}, a bare path, or a pair {"fixed", "moving"}; pairs may also stand in
    "registration_val" and "registration_test" of Learn2Reg. Where an image is known by a pair only, its label is looked
    for under the path with "images" replaced by "labels", the rule of the Learn2Reg evaluation. Where validation or
    test are given by pairs only, their images are left out of training.

    Args:
        dataset_dir: folder that all paths of the list are relative to.
        dataset_json: file name of the list in that folder; default: the only one that has a "training" list.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: no list, or one that is damaged or points out of the folder.
    """
    path = find_datalist(dataset_dir, dataset_json)
    content = load_json(path)
    labels = _known_labels(dataset_dir, path, content)
    listings = {section: _read_section(dataset_dir, path, content, section, labels) for section in SECTIONS}
    _keep_out_of_training(path, content, listings)
    return {section: listing for section, listing in listings.items() if listing.subjects}


def find_datalist(dataset_dir: Path, dataset_json: str | None = None) -> Path:
    """The JSON of a data folder: the one asked for, or the only one that has a "training" list."""
    if dataset_json is not None:
        path = dataset_dir / dataset_json
        if not path.is_file():
            raise InputError(f"The data list {path} does not exist; give the name of a JSON file inside {dataset_dir}.")
        return path
    candidates = sorted(dataset_dir.glob("*.json"))
    if not candidates:
        raise InputError(
            f"The data folder {dataset_dir} has no JSON data list; put a dataset.json with a 'training' list there."
        )
    found = [p for p in candidates if _has_training(p, must_be_valid=len(candidates) == 1)]
    if len(found) != 1:
        names = ", ".join(p.name for p in found or candidates)
        what = "several data lists" if found else "no JSON with a 'training' list"
        raise InputError(
            f"The data folder {dataset_dir} has {what} ({names}); keep only one JSON with a 'training' list there."
        )
    return found[0]


def _has_training(path: Path, must_be_valid: bool) -> bool:
    try:
        return "training" in load_json(path)
    except InputError:
        if must_be_valid:
            raise
        return False


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} is not valid JSON ({error}); correct it or copy it anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"The file {path} holds a JSON {type(content).__name__}, but a data list is an object.")
    return content


def inside(dataset_dir: Path, entry: object, source: Path) -> Path:
    """Path of a listed file, refused where it leaves the data folder (links inside the folder may lead elsewhere)."""
    if not isinstance(entry, str) or not entry:
        raise InputError(f"The data list {source} has the entry {entry!r} where a file path is expected; correct it.")
    normal = os.path.normpath(entry.replace("\\", "/"))
    if os.path.isabs(normal) or normal.split(os.sep)[0] == ".." or ":" in normal.split(os.sep)[0]:
        raise InputError(
            f"The data list {source} names {entry}, which leaves the data folder; write paths relative to that folder."
        )
    return dataset_dir / normal


def _entries(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise InputError(f"'{key}' in the data list {path} is a {type(entries).__name__}, but a list is expected.")
    return entries


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, dict) and {"fixed", "moving"} <= set(entry)


def _parts(path: Path, entry: Any) -> tuple[Any, Any]:
    """(image, label or None) of a subject entry."""
    if isinstance(entry, str):
        return entry, None
    if isinstance(entry, dict) and "image" in entry:
        return entry["image"], entry.get("label", entry.get("seg"))
    raise InputError(
        f"The data list {path} has the entry {entry!r}; expected {{'image', 'label'}}, {{'fixed', 'moving'}} or a path."
    )


def _known_labels(dataset_dir: Path, path: Path, content: dict[str, Any]) -> dict[Path, Path]:
    """Label file per image, from all lists, so that an image named in a pair finds its label."""
    known = {}
    for section in SECTIONS:
        for entry in _entries(path, content, section):
            if not _is_pair(entry):
                image, label = _parts(path, entry)
                if label is not None:
                    known[inside(dataset_dir, image, path)] = inside(dataset_dir, label, path)
    return known


def _guess_label(dataset_dir: Path, image: Path) -> Path | None:
    relative = image.relative_to(dataset_dir).as_posix()
    guess = dataset_dir / relative.replace("images", "labels")
    return guess if guess != image and guess.is_file() else None


def _read_section(
    dataset_dir: Path, path: Path, content: dict[str, Any], section: str, labels: dict[Path, Path]
) -> Listing:
    subjects: list[Subject] = []
    index: dict[Path, int] = {}

    def add(entry: Any, label: Path | None) -> int:
        image = inside(dataset_dir, entry, path)
        if image not in index:
            index[image] = len(subjects)
            subjects.append(make_subject(image, label or labels.get(image) or _guess_label(dataset_dir, image)))
        return index[image]

    pairs = []
    for entry in _entries(path, content, section):
        if _is_pair(entry):
            fixed = add(entry["fixed"], None)
            pairs.append((add(entry["moving"], None), fixed))
        else:
            image, label = _parts(path, entry)
            add(image, None if label is None else inside(dataset_dir, label, path))
    key = _PAIR_KEYS.get(section, "")
    for entry in _entries(path, content, key):
        if not _is_pair(entry):
            raise InputError(f"'{key}' in the data list {path} has {entry!r}; expected {{'fixed', 'moving'}}.")
        fixed = add(entry["fixed"], None)
        pairs.append((add(entry["moving"], None), fixed))
    return Listing(distinguish_ids(subjects), pairs or None)


def _keep_out_of_training(path: Path, content: dict[str, Any], listings: dict[str, Listing]) -> None:
    """Drop from training what only pair lists declare as held out; an explicit subject list is the author's word."""
    held_out: set[str] = set()
    for section in ("validation", "test"):
        if all(_is_pair(entry) for entry in _entries(path, content, section)):
            held_out |= {subject["image"] for subject in listings[section].subjects}
    training = listings["training"]
    kept = [subject for subject in training.subjects if subject["image"] not in held_out]
    if training.pairs is None and len(kept) < len(training.subjects):
        _logger.info(
            "%s: %d training images also serve in validation or test pairs and are left out of training.",
            path,
            len(training.subjects) - len(kept),
        )
        training.subjects = kept

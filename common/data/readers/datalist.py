# SPDX-License-Identifier: Apache-2.0
"""Folders described by a JSON in the style of MONAI data lists and Learn2Reg."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.readers.listing import (
    LANDMARK_COORDINATES,
    LANDMARKS,
    MASK,
    SECTIONS,
    Listing,
    Subject,
    distinguish_ids,
    keep_pairs_out_of_training,
    make_subject,
)

_logger = logging.getLogger(__name__)
PAIR_KEYS = {"training": "training_paired_images", "validation": "registration_val", "test": "registration_test"}
"""Learn2Reg's lists of pairs."""


def read_datalist(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a folder with a data list.

    Accepted entries: {"image", "label" or "seg"}, a bare path, or a pair {"fixed", "moving"}, with "fixed_label" and
    "moving_label" where they are known; pairs may also stand in "training_paired_images", "registration_val" and
    "registration_test" of Learn2Reg. Where an image is known by a pair only, its label is looked for under the path
    with "images" replaced by "labels", the rule of the Learn2Reg evaluation. An entry of an image may name the file of
    its "landmarks", and "landmark_coordinates", see :class:`common.data.LoadLandmarksd`, and of a "mask", where the
    image counts. Where validation or test are given by pairs only, their images are left out of training; training
    pairs that these list, too, are left out in any case.

    Args:
        dataset_dir: folder that all paths of the list are relative to.
        dataset_json: file name of the list in that folder; default: the only one that has a "training" list.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: no list, or one that is damaged or points out of the folder, or whose "training_paired_images" name
            what is not under "training".
    """
    path = find_datalist(dataset_dir, dataset_json)
    return read_content(dataset_dir, path, load_json(path))


def read_content(dataset_dir: Path, path: Path, content: dict[str, Any]) -> dict[str, Listing]:
    """:func:`read_datalist` of what a list holds, ``path`` for messages."""
    labels, further = _known_labels(dataset_dir, path, content), _known_further(dataset_dir, path, content)
    listings = {section: _read_section(dataset_dir, path, content, section, labels) for section in SECTIONS}
    for listing in listings.values():
        listing.subjects = [{**subject, **further.get(subject["image"], {})} for subject in listing.subjects]
    _compare_with_stated_pairs(path, content, listings["training"])
    _keep_out_of_training(path, content, listings)
    keep_pairs_out_of_training(path, listings["training"], [listings["validation"], listings["test"]])
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
        # Editors on Windows begin a file with a byte-order mark.
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"The file {path} is not valid JSON ({error}); correct it or copy it anew.") from error
    if not isinstance(content, dict):
        raise InputError(f"The file {path} holds a JSON {type(content).__name__}, but a data list is an object.")
    return content


def inside(dataset_dir: Path, entry: object, source: Path) -> Path:
    """Path of a listed file, refused where it leaves the data folder (links inside the folder may lead elsewhere).

    An absolute path, or one with "~", counts where it names a file of that folder.
    """
    if not isinstance(entry, str) or not entry:
        raise InputError(f"The data list {source} has the entry {entry!r} where a file path is expected; correct it.")
    normal = os.path.normpath(os.path.expanduser(entry.replace("\\", "/")))
    for folder in (os.path.abspath(dataset_dir), os.path.realpath(dataset_dir)):
        if Path(normal).is_relative_to(folder):
            normal = os.path.relpath(normal, folder)
    first = normal.split(os.sep)[0]
    if os.path.isabs(normal) or first == ".." or re.match(r"[A-Za-z]:", first):
        raise InputError(
            f"The data list {source} names {entry}, which leaves the data folder; write paths relative to that folder."
        )
    return dataset_dir / normal


def _entries(path: Path, content: dict[str, Any], key: str) -> list[Any]:
    entries = content.get(key) or []
    if not isinstance(entries, list):
        raise InputError(f"'{key}' in the data list {path} is a {type(entries).__name__}, but a list is expected.")
    return entries


def is_pair(entry: Any) -> bool:
    """Whether an entry of a list is a pair, not a scan."""
    return isinstance(entry, dict) and {"fixed", "moving"} <= set(entry)


def image_of(path: Path, entry: Any) -> Any:
    """What an entry of a list that is no pair names as image; raises as :func:`read_datalist`."""
    return _parts(path, entry)[0]


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
            for image, label in _sides(entry).values() if is_pair(entry) else [_parts(path, entry)]:
                if label is not None:
                    known[inside(dataset_dir, image, path)] = inside(dataset_dir, label, path)
    return known


def _known_further(dataset_dir: Path, path: Path, content: dict[str, Any]) -> dict[str, Subject]:
    """What the entries of images say of landmarks and masks, by the path of the image."""
    known: dict[str, Subject] = {}
    for section in SECTIONS:
        for entry in _entries(path, content, section):
            if isinstance(entry, dict) and "image" in entry:
                said = {key: str(inside(dataset_dir, entry[key], path)) for key in (LANDMARKS, MASK) if key in entry}
                if LANDMARKS in said and LANDMARK_COORDINATES in entry:
                    said[LANDMARK_COORDINATES] = str(entry[LANDMARK_COORDINATES])
                known[str(inside(dataset_dir, entry["image"], path))] = said
    return known


def _sides(pair: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """(image, label or None) of the two images of a pair, the fixed one first, the order in which lists count."""
    return {side: (pair[side], pair.get(f"{side}_label")) for side in ("fixed", "moving")}


def _guess_label(dataset_dir: Path, image: Path) -> Path | None:
    relative = image.relative_to(dataset_dir).as_posix()
    guess = dataset_dir / relative.replace("images", "labels")
    return guess if guess != image and guess.is_file() else None


class _Collected:
    """The subjects of a section, each once, as its entries name them."""

    def __init__(self, dataset_dir: Path, path: Path, labels: dict[Path, Path]) -> None:
        self.dataset_dir, self.path, self.labels = dataset_dir, path, labels
        self.subjects: list[Subject] = []
        self.index: dict[Path, int] = {}

    def add(self, entry: Any, label: Any = None) -> int:
        """Place of an image among the subjects, of which it is one from now on."""
        image = self.below(entry)
        file = None if label is None else self.below(label)
        if image not in self.index:
            self.index[image] = len(self.subjects)
            file = file or self.labels.get(image) or _guess_label(self.dataset_dir, image)
            self.subjects.append(make_subject(image, file))
        return self.index[image]

    def add_pair(self, entry: dict[str, Any]) -> tuple[int, int]:
        """Places (moving, fixed) of the images of a pair."""
        fixed, moving = (self.add(*side) for side in _sides(entry).values())
        return moving, fixed

    def below(self, entry: Any) -> Path:
        return inside(self.dataset_dir, entry, self.path)


def _read_section(
    dataset_dir: Path, path: Path, content: dict[str, Any], section: str, labels: dict[Path, Path]
) -> Listing:
    found = _Collected(dataset_dir, path, labels)
    pairs = []
    for entry in _entries(path, content, section):
        if is_pair(entry):
            pairs.append(found.add_pair(entry))
        else:
            found.add(*_parts(path, entry))
    key = PAIR_KEYS[section]
    training = set(found.index) if section == "training" else set()
    for entry in _entries(path, content, key):
        if not is_pair(entry):
            raise InputError(f"'{key}' in the data list {path} has {entry!r}; expected {{'fixed', 'moving'}}.")
        for image, _ in _sides(entry).values():
            if training and found.below(image) not in training:
                raise InputError(
                    f"'{key}' in the data list {path} names {image}, which is not under 'training': list it there, or "
                    "take the pair out."
                )
        pairs.append(found.add_pair(entry))
    return Listing(distinguish_ids(found.subjects), pairs or None)


def _compare_with_stated_pairs(path: Path, content: dict[str, Any], training: Listing) -> None:
    """Say where a list speaks of training pairs that it does not name."""
    stated, listed = content.get("numPairedTraining"), len(training.pairs or ())
    if not listed and (stated or content.get("pairings") == "paired"):
        _logger.warning(
            "%s calls its scans paired, but lists no pairs for training (%s): partners are drawn among all scans.",
            *(path, PAIR_KEYS["training"]),
        )
    elif isinstance(stated, int) and stated != listed:
        _logger.warning("%s states %d training pairs, but lists %d, which are used.", path, stated, listed)


def _keep_out_of_training(path: Path, content: dict[str, Any], listings: dict[str, Listing]) -> None:
    """Drop from training what only pair lists declare as held out; an explicit subject list is the author's word."""
    held_out: set[str] = set()
    for section in ("validation", "test"):
        if all(is_pair(entry) for entry in _entries(path, content, section)):
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

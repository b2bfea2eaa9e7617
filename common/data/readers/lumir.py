# SPDX-License-Identifier: Apache-2.0
"""LUMIR (Learn2Reg 2024): the organisers' JSON, the list edited by the authors of EOIR, or the files alone.

Sources: LUMIR challenge (Learn2Reg 2024), Dufumier et al. 2022, Taha et al. 2023, Marcus et al. 2007; split of
arXiv 2509.00451.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.readers.datalist import PAIR_KEYS, find_datalist, inside, load_json
from common.data.readers.listing import SECTIONS, Listing, keep_pairs_out_of_training, make_subject
from common.data.splits import load_split

_logger = logging.getLogger(__name__)
_SANITY_LABELS = "SanityCheckLabelsTr"
# Folders of the release, which its lists write with a leading slash.
_FROM_THE_TOP = re.compile(r"^/+(?=(images|labels|landmarks|masks|SanityCheckLabels)\w*/)")


def read_lumir(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a LUMIR folder; both lists give the same three, told apart by the keys of their entries.

    Training has images without labels. The ten training images with labels (``SanityCheckLabelsTr``) are the
    validation section, without listed pairs, and are not trained on; the official validation pairs, whose labels are
    held back, are the test section. Where those ten labels are missing, the official pairs are the validation section
    as well. Without any JSON the published split is applied to the files under their official names.

    Args:
        dataset_dir: folder that all paths of the list are joined below, with or without a leading slash.
        dataset_json: file name of the list; default: the only JSON with a "training" list.

    Returns:
        Listing per section; sections without subjects are absent.

    Raises:
        InputError: a list that is damaged or points out of the folder, or neither a list nor files of LUMIR.
    """
    if dataset_json is None and not any(dataset_dir.glob("*.json")):
        path, content = dataset_dir, _published_list(dataset_dir)
    else:
        path = find_datalist(dataset_dir, dataset_json)
        content = load_json(path)
    content = _with_training_pairs(content)
    lists = {section: _SectionList(dataset_dir, path, section, content.get(section) or []) for section in SECTIONS}
    validation, test = lists["validation"].listing(), lists["test"].listing()
    training = lists["training"].listing()
    if validation.pairs is not None:
        if not test.subjects:
            test = validation
        validation = _with_sanity_labels(dataset_dir, training) or validation
    held_out = {subject["image"] for subject in (*validation.subjects, *test.subjects)}
    if training.pairs is None:
        training.subjects = [subject for subject in training.subjects if subject["image"] not in held_out]
    keep_pairs_out_of_training(path, training, [validation, test])
    listings = {"training": training, "validation": validation, "test": test}
    return {section: listing for section, listing in listings.items() if listing.subjects}


def _with_training_pairs(content: dict[str, Any]) -> dict[str, Any]:
    """With Learn2Reg's list of training pairs among the entries of "training", where these are a list."""
    training, pairs = content.get("training") or [], content.get(PAIR_KEYS["training"]) or []
    return {**content, "training": [*training, *pairs]} if isinstance(training, list) and pairs else content


class _SectionList:
    """One list of the JSON: subjects {"image", "seg" or "label"}, bare paths, or pairs {"fixed", "moving"}."""

    def __init__(self, dataset_dir: Path, source: Path, section: str, entries: Any) -> None:
        # The list of the challenge's 2025 container holds the number of images here, and no images.
        if not isinstance(entries, list):
            raise InputError(
                f"'{section}' in the data list {source} is {entries!r}, but a list of images or pairs is expected."
            )
        self.dataset_dir, self.source, self.section = dataset_dir, source, section
        self.entries: list[Any] = entries

    def listing(self) -> Listing:
        index: dict[Path, int] = {}
        labels: dict[Path, Path] = {}
        pairs = []
        for entry in self.entries:
            if isinstance(entry, dict) and {"fixed", "moving"} <= set(entry):
                fixed, moving = (self._below(entry[side]) for side in ("fixed", "moving"))
                # The fixed image first: the order in which the official list counts.
                fixed_index = index.setdefault(fixed, len(index))
                pairs.append((index.setdefault(moving, len(index)), fixed_index))
            else:
                image, label = self._subject(entry)
                index.setdefault(image, len(index))
                if label is not None:
                    labels[image] = label
        subjects = [make_subject(image, labels.get(image) or _label_beside(image)) for image in index]
        return Listing(subjects, pairs or None)

    def _subject(self, entry: Any) -> tuple[Path, Path | None]:
        if isinstance(entry, str):
            return self._below(entry), None
        if not isinstance(entry, dict) or "image" not in entry:
            raise InputError(
                f"The data list {self.source} has the entry {entry!r} under '{self.section}'; expected {{'image'}}, "
                "{'image', 'seg'} or {'fixed', 'moving'}."
            )
        label = entry.get("seg", entry.get("label"))
        return self._below(entry["image"]), None if label is None else self._below(label)

    def _below(self, entry: object) -> Path:
        relative = _FROM_THE_TOP.sub("", entry) if isinstance(entry, str) else entry
        return inside(self.dataset_dir, relative, self.source)


def _label_beside(image: Path) -> Path | None:
    """``labelsVal/NAME`` beside ``imagesVal/NAME``, where somebody has it."""
    guess = image.parent.with_name(image.parent.name.replace("images", "labels")) / image.name
    return guess if guess != image and guess.is_file() else None


def _with_sanity_labels(dataset_dir: Path, training: Listing) -> Listing | None:
    """The training images that have a label for sanity checks; None when there are fewer than two."""
    folder = dataset_dir / _SANITY_LABELS
    images = [Path(subject["image"]) for subject in training.subjects]
    labelled = [make_subject(image, folder / image.name) for image in images if (folder / image.name).is_file()]
    if len(labelled) < 2:
        _logger.warning(
            "%s has no labels in %s: validation takes the official pairs, for which there is no Dice.",
            *(dataset_dir, _SANITY_LABELS),
        )
        return None
    return Listing(labelled)


def _published_list(dataset_dir: Path) -> dict[str, list[dict[str, str]]]:
    """The published split over those images that are there."""

    def name(folder: str, number: int) -> str:
        return f"{folder}/LUMIRMRI_{number:04d}_0000.nii.gz"

    def numbers(ranges: list[list[int]]) -> Iterator[int]:
        for first, last in ranges:
            yield from range(first, last + 1)

    split = load_split("lumir")["eoir_variant"]
    training = [name("imagesTr", number) for number in numbers(split["training_id_ranges"])]
    labelled = [
        {"image": name("imagesTr", number), "seg": name(_SANITY_LABELS, number)}
        for number in split["validation_ids_with_labels"]
    ]
    pairs = [
        {"fixed": name("imagesVal", fixed), "moving": name("imagesVal", moving)}
        for fixed, moving in split["test_pairs"]
    ]
    content = {
        "training": [{"image": image} for image in training],
        "validation": labelled,
        "test": pairs,
    }
    present = {
        section: [entry for entry in entries if all((dataset_dir / file).is_file() for file in entry.values())]
        for section, entries in content.items()
    }
    if not any(present.values()):
        raise InputError(
            f"The folder {dataset_dir} is no known form of LUMIR; expected LUMIR_dataset.json with imagesTr and "
            "imagesVal, or files imagesTr/LUMIRMRI_NNNN_0000.nii.gz."
        )
    missing = sum(len(content[section]) - len(present[section]) for section in SECTIONS)
    if missing:
        _logger.warning("%s lacks files for %d entries of the published LUMIR split.", dataset_dir, missing)
    return present

# SPDX-License-Identifier: Apache-2.0
"""Data sets laid out by BIDS: the participants of each section, their images and label maps, raw or derivatives.

Sections come from a column ``section`` of ``participants.tsv`` (training, validation or test; anything else, such as
n/a, is in none), or from ``sections.json`` in the data folder (``dataset_json`` names another one)::

    {"image": "space-MNI152NLin2009cAsym_desc-preproc_T1w", "label": "space-MNI152NLin2009cAsym_desc-aseg_dseg",
     "training": ["sub-01", "sub-02"], "validation": ["sub-03", "sub-04"]}

``image`` and ``label`` are how the names of the files end behind what tells the scans apart (sub, ses, acq, run, ...).
Without them images are ``*_T1w`` and label maps what ends in ``dseg`` and lies in the space of the image.

Source: https://bids-specification.readthedocs.io.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.bids import (
    BidsFile,
    check_data_set,
    files_of,
    parse_name,
    participants_of,
    read_object,
    read_tsv,
    suffixes_of,
)
from common.data.readers.listing import SECTIONS, Listing, Subject

_logger = logging.getLogger(__name__)
_IMAGE, _LABELS = "T1w", "dseg"
_COLUMN, _LIST = "section", "sections.json"


def read_bids(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a data set in BIDS; of each section every ordered pair counts.

    Args:
        dataset_dir: folder with ``dataset_description.json`` and ``sub-*``. Label maps may also lie in its
            ``derivatives/*``.
        dataset_json: file name, in that folder, of the JSON with sections; None for ``sections.json`` or, where there
            is none, ``participants.tsv``.

    Returns:
        Listing per section, one subject for each scan, its id the beginning of the file name, such as "sub-01_ses-a".
        Participants without an image are left out with a warning, sections without subjects are absent.

    Raises:
        InputError: no BIDS data set, no sections, one that names who is not there or in another one, no image at all,
            or several label maps for one image.
    """
    check_data_set(dataset_dir)
    if dataset_json is None and (dataset_dir / _LIST).is_file():
        dataset_json = _LIST
    path = dataset_dir / ("participants.tsv" if dataset_json is None else dataset_json)
    if not path.is_file():
        raise InputError(f"{path} does not exist, so there are no sections: {_remedy(dataset_dir)}")
    content = _of_column(path) if dataset_json is None else read_object(path)
    wanted = _ending(path, content, "image", _IMAGE)
    label = _ending(path, content, "label", _LABELS)
    listings = {}
    for section, participants in _sections(path, content, participants_of(dataset_dir)).items():
        scans = {participant: _images(dataset_dir, participant, wanted) for participant in participants}
        without = [participant for participant, images in scans.items() if not images]
        if without:
            _logger.warning(
                "%s: %d of %d participants of the %s section have no image *_%s, such as sub-%s; they have: %s.",
                *(dataset_dir, len(without), len(participants), section, content.get("image", _IMAGE), without[0]),
                ", ".join(suffixes_of(dataset_dir, without[0])) or "none",
            )
        chooses = "label" in content
        subjects = [_subject(dataset_dir, image, label, chooses) for images in scans.values() for image in images]
        if subjects:
            listings[section] = Listing(subjects)
    if not listings:
        raise InputError(
            f"No participant that {path} puts into a section has an image *_{content.get('image', _IMAGE)}: name "
            f"another end of their names as 'image' in {_LIST}."
        )
    return listings


def _remedy(dataset_dir: Path) -> str:
    return (
        f"give {dataset_dir / 'participants.tsv'} a column '{_COLUMN}' with {', '.join(SECTIONS)}, or put a {_LIST} "
        "with lists of participants there."
    )


def _of_column(path: Path) -> dict[str, Any]:
    """What a JSON would say, by the column of ``participants.tsv``."""
    rows = read_tsv(path)
    if not rows or not {_COLUMN, "participant_id"} <= rows[0].keys():
        raise InputError(f"{path} has no columns participant_id and '{_COLUMN}': {_remedy(path.parent)}")
    return {section: [row["participant_id"] for row in rows if row[_COLUMN] == section] for section in SECTIONS}


def _ending(path: Path, content: dict[str, Any], key: str, default: str) -> BidsFile:
    """What the end of a name asks for."""
    value = content.get(key, default)
    found = parse_name(value) if isinstance(value, str) else None
    if found is None or found.scan:
        raise InputError(
            f"'{key}' in {path} is {value!r}, but an end of names without sub, ses, run and their like is expected, "
            f"such as {default} or space-MNI152NLin2009cAsym_desc-x_{default}."
        )
    return found


def _sections(path: Path, content: dict[str, Any], known: list[str]) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    place: dict[str, str] = {}
    for section in SECTIONS:
        entries = content.get(section, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise InputError(f"'{section}' in {path} is {entries!r}, but a list of participants is expected.")
        sections[section] = [entry.removeprefix("sub-") for entry in entries]
        for participant in sections[section]:
            if participant not in known:
                raise InputError(f"{path} names sub-{participant}, of whom there is no folder: correct the name.")
            if participant in place:
                raise InputError(f"{path} names sub-{participant} twice, in {place[participant]} and {section}.")
            place[participant] = section
    if not place:
        raise InputError(f"{path} puts nobody into a section: {_remedy(path.parent)}")
    return {section: participants for section, participants in sections.items() if participants}


def _images(dataset_dir: Path, participant: str, wanted: BidsFile) -> list[BidsFile]:
    return [file for file in files_of(dataset_dir, participant, wanted.suffix) if file.made == wanted.made]


def _subject(dataset_dir: Path, image: BidsFile, wanted: BidsFile, chooses: bool) -> Subject:
    subject = {"id": image.prefix, "image": str(image.path)}
    places = (dataset_dir, *sorted((dataset_dir / "derivatives").glob("*/")))
    files = [file for place in places for file in files_of(place, image.entities["sub"], wanted.suffix)]
    if chooses:
        files = [file for file in files if file.made == wanted.made]
    found = [file.path for file in files if _is_of(file, image)]
    if len(found) > 1:
        raise InputError(
            f"{image.path} has {len(found)} label maps, {found[0].name} and {found[1].name} among them: say which ones "
            f"count by 'label' in {_LIST}."
        )
    return {**subject, "label": str(found[0])} if found else subject


def _is_of(label: BidsFile, image: BidsFile) -> bool:
    """Whether a label map is of this scan, in this space; of runs and their like it need not say all."""
    if not label.scan.items() <= image.scan.items() or label.entities.get("ses") != image.entities.get("ses"):
        return False
    both_own = label.is_in_own_space and image.is_in_own_space
    return both_own or label.entities.get("space") == image.entities.get("space")

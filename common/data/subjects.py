# SPDX-License-Identifier: Apache-2.0
"""The subjects of a data set and the pairs that it lists, checked before anything is decoded."""

from __future__ import annotations

import logging
from pathlib import Path

from common.checks import InputError
from common.data.readers import READERS, SECTIONS, Listing
from common.data.readers.listing import LANDMARKS, MASK, Subject
from common.io.dicom_files import is_there

_logger = logging.getLogger(__name__)


def read_section(
    dataset_dir: str | Path,
    reader: str = "datalist",
    section: str = "training",
    dataset_json: str | None = None,
    first: int | None = None,
) -> Listing:
    """The subjects of one section of a data set, and the pairs that it lists.

    Where pairs are listed, subjects in none of them are left out.

    Args:
        dataset_dir: folder of the data set.
        reader: name of the layout, a key of ``common.data.READERS``.
        section: "training", "validation" or "test".
        dataset_json: name of the data list in the folder, where the reader's own choice is not wanted.
        first: how many subjects count, from the first one of the list on (of hearts each frame is one); None for all.

    Returns:
        ``subjects``, dictionaries {"id", "image", "label"}, "label" absent where there is none; ``pairs``, (moving,
        fixed) indices into them, None where the data set lists none.

    Raises:
        InputError: folder missing or empty, list missing or damaged, listed files missing, no such section, fewer
            than two subjects, or fewer than ``first``.
    """
    listed = _read_listing(Path(dataset_dir).expanduser(), reader, section, dataset_json)
    listing = listed.without_unpaired()
    unpaired = len(listed.subjects) - len(listing.subjects)
    if unpaired:
        _logger.info("%s: %d %s subjects are in no listed pair and are left out.", dataset_dir, unpaired, section)
    files = [
        subject[key] for subject in listing.subjects for key in ("image", "label", MASK, LANDMARKS) if key in subject
    ]
    missing = sorted({file for file in files if not is_there(file)})
    if missing:
        raise InputError(
            f"{len(missing)} listed file(s) of the {section} section of {dataset_dir} do not exist, the first is "
            f"{missing[0]}; complete the download or correct the data list."
        )
    if len(listing.subjects) < 2:
        raise InputError(
            f"The {section} section of {dataset_dir} has {len(listing.subjects)} subject(s), but registration needs at "
            "least two; add subjects or choose another section."
        )
    return listing if first is None else _first(listing, first, f"The {section} section of {dataset_dir}")


def _first(listing: Listing, number: int, source: str) -> Listing:
    if not 2 <= number <= len(listing.subjects):
        raise InputError(
            f"--train_subjects is {number}, but {source} has {len(listing.subjects)} subjects; give 2 to that many."
        )
    kept = listing.first(number)
    if not kept.subjects:
        raise InputError(f"--train_subjects is {number}, but none of the pairs of {source} is among these; give more.")
    _logger.info("%s: the first %d of %d subjects.", source, len(kept.subjects), len(listing.subjects))
    return kept


def read_subjects(
    dataset_dir: str | Path, reader: str = "datalist", section: str = "training", dataset_json: str | None = None
) -> list[Subject]:
    """The subjects of :func:`read_section` alone, as earlier releases read them; kept for code written for these."""
    return read_section(dataset_dir, reader, section, dataset_json).subjects


def _read_listing(dataset_dir: Path, reader: str, section: str, dataset_json: str | None) -> Listing:
    if reader not in READERS:
        raise InputError(f"The reader '{reader}' is unknown; use one of {', '.join(READERS)}.")
    if not dataset_dir.is_dir():
        raise InputError(f"The data folder {dataset_dir} does not exist; set dataset_dir to an existing folder.")
    if not any(dataset_dir.iterdir()):
        raise InputError(f"The data folder {dataset_dir} is empty; put the data set there or set dataset_dir.")
    listings = READERS[reader](dataset_dir, dataset_json)
    if section not in listings:
        exists = ", ".join(listings) or "none"
        raise InputError(
            f"The data set {dataset_dir} has no section '{section}'; of the sections {', '.join(SECTIONS)} it has "
            f"subjects in: {exists}."
        )
    return listings[section]

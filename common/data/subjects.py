# SPDX-License-Identifier: Apache-2.0
"""The subjects of a data set and the pairs that it lists, checked before anything is decoded."""

from __future__ import annotations

from pathlib import Path

from common.checks import InputError
from common.data.readers import READERS, SECTIONS, Listing


def read_subjects(
    dataset_dir: str | Path, reader: str = "datalist", section: str = "training", dataset_json: str | None = None
) -> list[dict[str, str]]:
    """List the subjects of one section of a data set.

    Args:
        dataset_dir: folder of the data set.
        reader: name of the layout, a key of ``common.data.READERS``.
        section: "training", "validation" or "test".
        dataset_json: name of the data list in the folder, where the reader's own choice is not wanted.

    Returns:
        Dictionaries {"id", "image", "label"}; "label" is absent where there is none.

    Raises:
        InputError: folder missing or empty, list missing or damaged, listed files missing, no such section, or fewer
            than two subjects.
    """
    listing = _read_listing(Path(dataset_dir), reader, section, dataset_json)
    files = [subject[key] for subject in listing.subjects for key in ("image", "label") if key in subject]
    missing = sorted({file for file in files if not Path(file).is_file()})
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
    return listing.subjects


def read_pairs(
    dataset_dir: str | Path,
    reader: str,
    section: str,
    subjects: list[dict[str, str]],
    dataset_json: str | None = None,
) -> list[tuple[int, int]]:
    """The pairs that a data set lists for a section, or all ordered pairs where it lists none.

    Args:
        dataset_dir: folder of the data set.
        reader: name of the layout, a key of ``common.data.READERS``.
        section: "training", "validation" or "test".
        subjects: result of :func:`read_subjects`, or a part of it; pairs with a subject that is not in it are left out.
        dataset_json: as in :func:`read_subjects`.

    Returns:
        (moving, fixed) indices into ``subjects``.

    Raises:
        InputError: as :func:`read_subjects`, and if no listed pair has both subjects in ``subjects``.
    """
    listing = _read_listing(Path(dataset_dir), reader, section, dataset_json)
    if listing.pairs is None:
        n = len(subjects)
        return [(moving, fixed) for fixed in range(n) for moving in range(n) if moving != fixed]
    position = {_key(subject): i for i, subject in enumerate(subjects)}
    listed = [(_key(listing.subjects[moving]), _key(listing.subjects[fixed])) for moving, fixed in listing.pairs]
    pairs = [(position[m], position[f]) for m, f in listed if m in position and f in position]
    if not pairs:
        raise InputError(
            f"None of the {len(listed)} pairs that {dataset_dir} lists for {section} is among the {len(subjects)} "
            "given subjects; read the subjects from the same section."
        )
    return pairs


def _key(subject: dict[str, str]) -> tuple[str, str]:
    return subject["image"], subject.get("role", "")


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

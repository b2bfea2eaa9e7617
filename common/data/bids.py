# SPDX-License-Identifier: Apache-2.0
"""Names, images and metadata of a data set that is laid out by BIDS, the Brain Imaging Data Structure.

A file is named ``sub-01_ses-a_run-1_T1w.nii.gz``: entities ``key-value``, then a suffix. That, the folders ``sub-*``
and ``ses-*`` and the inheritance of JSON files is all that is wanted here, and fits into this module; pybids, the
library for it, brings a data base, a tool kit of statistics and pandas along.

Source: https://bids-specification.readthedocs.io, version 1.10.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checks import InputError

DESCRIPTION = "dataset_description.json"
_NIFTI = (".nii.gz", ".nii")
_NOT_OF_A_SCAN = ("space", "res", "den", "seg", "atlas", "label", "desc")
"""Entities that say what was made of a scan, not which scan it is."""
_OWN_SPACES = ("", "orig", "T1w", "individual")
"""What ``space`` says of files that lie as the scan does."""


@dataclass(frozen=True)
class BidsFile:
    """A file, and what its name says.

    Attributes:
        path: of the file.
        entities: values by key, in the order of the name.
        suffix: the last part, such as T1w.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def scan(self) -> dict[str, str]:
        """The entities that say which scan of whom it is: all but space, res, den, seg, atlas, label and desc."""
        return {key: value for key, value in self.entities.items() if key not in _NOT_OF_A_SCAN}

    @property
    def made(self) -> dict[str, str]:
        """The other ones, that say what was made of the scan; none of a raw scan."""
        return {key: value for key, value in self.entities.items() if key in _NOT_OF_A_SCAN}

    @property
    def prefix(self) -> str:
        """How the names of all that is made of this scan begin, such as ``sub-01_run-1``."""
        return join_entities(self.scan)

    @property
    def is_in_own_space(self) -> bool:
        """Whether it lies as the scan does, and not in a template."""
        return self.entities.get("space", "") in _OWN_SPACES

    @property
    def folder(self) -> Path:
        """Its folder below that of the data set: ``sub-01/anat``, or ``sub-01/ses-a/anat`` of sessions."""
        session = [f"ses-{self.entities['ses']}"] if "ses" in self.entities else []
        return Path(f"sub-{self.entities['sub']}", *session, self.path.parent.name)


def parse_name(path: str | Path) -> BidsFile | None:
    """What the name of a file says; None of a file that is not named by BIDS."""
    path = Path(path)
    *parts, suffix = path.name.split(".")[0].split("_")
    pairs = [part.split("-", 1) for part in parts]
    if not all(re.fullmatch(r"[a-z]+-[0-9a-zA-Z+]+", part) for part in parts) or not suffix.isalnum():
        return None
    return BidsFile(path, {key: value for key, value in pairs}, suffix)


def join_entities(entities: Mapping[str, str]) -> str:
    """``key-value`` of each, joined by underscores, in their order."""
    return "_".join(f"{key}-{value}" for key, value in entities.items())


def check_data_set(root: Path) -> dict[str, Any]:
    """What ``dataset_description.json`` says.

    Raises:
        InputError: the folder does not exist, or has no such file or folders ``sub-*``.
    """
    if not root.is_dir():
        raise InputError(f"The data set {root} does not exist.")
    if not (root / DESCRIPTION).is_file():
        raise InputError(f"The folder {root} is no BIDS data set: it has no {DESCRIPTION}.")
    if not participants_of(root):
        raise InputError(f"The BIDS data set {root} has no folder sub-* with scans of a participant.")
    return read_object(root / DESCRIPTION)


def participants_of(root: Path) -> list[str]:
    """Labels of all folders ``sub-*``, in order, without "sub-"."""
    return sorted(path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir())


def files_of(root: Path, participant: str, suffix: str) -> list[BidsFile]:
    """NIfTI files of a participant in all sessions and kinds of data, sorted by name.

    Args:
        root: of the data set.
        participant: label without "sub-".
        suffix: such as "T1w" or "dseg".
    """
    folder = root / f"sub-{participant}"
    found = [*folder.glob(f"*/*_{suffix}.nii*"), *folder.glob(f"ses-*/*/*_{suffix}.nii*")]
    files = [parse_name(path) for path in sorted(found) if path.name.endswith(_NIFTI)]
    return [file for file in files if file is not None and file.entities.get("sub") == participant]


def suffixes_of(root: Path, participant: str) -> list[str]:
    """Suffixes of all the NIfTI files that a participant has, for messages."""
    return sorted({file.suffix for file in files_of(root, participant, "*")})


def metadata_of(file: BidsFile, root: Path) -> dict[str, Any]:
    """What the JSON files beside an image and above it say, the nearer ones counting more.

    Args:
        file: below ``root``.
        root: of the data set.

    Raises:
        InputError: a JSON file is damaged.
    """
    found: dict[str, Any] = {}
    depth = len(file.path.relative_to(root).parts) - 1
    for folder in reversed(file.path.parents[: depth + 1]):
        candidates = [parse_name(path) for path in folder.glob(f"*{file.suffix}.json")]
        applies = [one for one in candidates if one is not None and one.suffix == file.suffix and _is_part(one, file)]
        for one in sorted(applies, key=lambda one: len(one.entities)):
            found |= read_object(one.path)
    return found


def _is_part(one: BidsFile, other: BidsFile) -> bool:
    return one.entities.items() <= other.entities.items()


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: it is damaged, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, but an object is expected: correct it.")
    return content


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Rows of a table with tabs, by the names of its columns.

    Raises:
        InputError: it is no text, or a row is shorter or longer than the header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: save it as text in UTF-8, separated by tabs.") from error
    header = rows[0] if rows else []
    for row in rows[1:]:
        if len(row) != len(header):
            raise InputError(f"{path}: the row of {row[0]!r} has {len(row)} values, but the header {len(header)}.")
    return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def chosen(root: Path, labels: Sequence[str] | None) -> list[str]:
    """The participants that are asked for, with "sub-" or without; all of them where none are.

    Raises:
        InputError: one of them has no folder.
    """
    known = participants_of(root)
    wanted = known if labels is None else [label.removeprefix("sub-") for label in labels]
    missing = [label for label in wanted if label not in known]
    if missing:
        raise InputError(
            f"{root} has no folder sub-{missing[0]}; of {len(known)} participants the first are "
            f"{', '.join(known[:5])}: correct --participant-label."
        )
    return list(dict.fromkeys(wanted))

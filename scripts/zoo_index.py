# SPDX-License-Identifier: Apache-2.0
"""The list of a zoo's bundles in the form that MONAI reads: name and version, checksum, address.

``models/model_info.json`` holds ``{"NAME_vVERSION": {"checksum": SHA-1, "source": URL}}``, as MONAI's own zoo has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from common.checks import InputError
from common.io.files import write_bytes

PLACE = Path("models") / "model_info.json"
"""Where MONAI looks for it, from the folder of a repository at a tag."""

Index = dict[str, dict[str, str]]


def parse(content: bytes, source: str) -> Index:
    """Read an index.

    Args:
        content: of the file.
        source: what to call it in an error.

    Raises:
        InputError: it is not of the form above.
    """
    try:
        index = json.loads(content)
        return {
            str(name): {"checksum": str(entry["checksum"]), "source": str(entry["source"])}
            for name, entry in index.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{source} is no list of bundles as scripts/package.py --all writes it.") from error


def versions(index: Mapping[str, object], name: str) -> list[str]:
    """Versions of a bundle from old to new, by their numbers."""
    found = [key.removeprefix(f"{name}_v") for key in index if key.startswith(f"{name}_v")]
    return sorted(found, key=by_number)


def by_number(version: str) -> list[tuple[int, str]]:
    """Key to sort versions by: 0.10.0 is later than 0.9.0."""
    return [(int(number or 0), text) for number, text in re.findall(r"(\d*)([^\d]*)", version)]


def extend(folder: Path, new: Index, overwrite: bool = False) -> Index:
    """The index of a folder with the entries of new zips; earlier versions stay in it.

    Raises:
        InputError: the index is damaged, has another checksum for a version, or MONAI would not take the new version
            for the newest.
    """
    path = folder / PLACE
    index = parse(path.read_bytes(), str(path)) if path.is_file() else {}
    for key, entry in new.items():
        if not overwrite and index.get(key, entry)["checksum"] != entry["checksum"]:
            raise InputError(
                f"{path} has another checksum for {key}: raise the version in metadata.json, or replace the entry with "
                "--overwrite true."
            )
    index = dict(sorted({**index, **new}.items()))
    for name in {key.partition("_v")[0] for key in new}:
        found = versions(index, name)
        if max(found) != found[-1]:
            raise InputError(
                f"MONAI compares versions as texts and would take {name} {max(found)} for newer than {found[-1]}: "
                "raise another number of the version."
            )
    return index


def write(folder: Path, index: Index) -> None:
    """Write an index where MONAI looks for it."""
    write_bytes(folder / PLACE, (json.dumps(index, indent=4) + "\n").encode())

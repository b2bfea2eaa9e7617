# SPDX-License-Identifier: Apache-2.0
"""What a person asks to be registered: two files, or the listed pairs of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from common.checks import InputError
from common.data.subjects import read_pairs, read_subjects


class Request(NamedTuple):
    """Subjects without labels, and (moving, fixed) indices into them."""

    subjects: list[dict[str, str]]
    pairs: list[tuple[int, int]]


def registration_request(
    dataset_dir: str | Path,
    reader: str = "datalist",
    section: str = "test",
    fixed: str | None = None,
    moving: str | None = None,
) -> Request:
    """The images to register.

    Args:
        dataset_dir: folder of the data set; not looked at when two files are given.
        reader: layout of the data set.
        section: section whose pairs are registered.
        fixed: image file that stays.
        moving: image file that is warped.

    Returns:
        Subjects and pairs.

    Raises:
        InputError: when only one file is given or a file does not exist, and as ``read_subjects`` and ``read_pairs``.
    """
    if fixed is None and moving is None:
        subjects = read_subjects(dataset_dir, reader, section)
        pairs = read_pairs(dataset_dir, reader, section, subjects)
        return Request([{k: v for k, v in subject.items() if k != "label"} for subject in subjects], pairs)
    if fixed is None or moving is None:
        given, missing = ("moving", "fixed") if fixed is None else ("fixed", "moving")
        raise InputError(f"--{given} was given without --{missing}; a pair needs both files.")
    for name, path in (("fixed", fixed), ("moving", moving)):
        if not Path(path).exists():
            raise InputError(f"The {name} image {path} does not exist.")
    names = [Path(path).name.split(".")[0] for path in (moving, fixed)]
    if names[0] == names[1]:
        names = [
            f"{Path(path).resolve().parent.name}-{name}" for path, name in zip((moving, fixed), names, strict=True)
        ]
    subjects = [{"id": name, "image": str(path)} for name, path in zip(names, (moving, fixed), strict=True)]
    return Request(subjects, [(0, 1)])

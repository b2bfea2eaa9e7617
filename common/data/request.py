# SPDX-License-Identifier: Apache-2.0
"""What a person asks to be registered: two files, or the listed pairs of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from common.checks import InputError
from common.data.subjects import read_section

LABEL_NAMES = ("moving label map", "fixed label map")


class Request(NamedTuple):
    """Subjects, with labels where there are any, and (moving, fixed) indices into them."""

    subjects: list[dict[str, str]]
    pairs: list[tuple[int, int]]


def registration_request(
    dataset_dir: str | Path,
    reader: str = "datalist",
    section: str = "test",
    moving: str | None = None,
    fixed: str | None = None,
    moving_label: str | None = None,
    fixed_label: str | None = None,
) -> Request:
    """The images to register.

    Args:
        dataset_dir: folder of the data set; not looked at when two files are given.
        reader: layout of the data set.
        section: section whose pairs are registered.
        moving: image file that is warped.
        fixed: image file that stays.
        moving_label: label map on the grid of ``moving``, warped like its image.
        fixed_label: label map on the grid of ``fixed``, to measure the overlap with.

    Returns:
        Subjects and pairs.

    Raises:
        InputError: when only one file is given or a file does not exist, and as ``read_section``.
    """
    if moving is None and fixed is None:
        if moving_label is not None or fixed_label is not None:
            raise InputError("A label map was given without its image; give --moving and --fixed, too.")
        listing = read_section(dataset_dir, reader, section)
        return Request(listing.subjects, listing.every_pair())
    if moving is None or fixed is None:
        given, missing = ("moving", "fixed") if fixed is None else ("fixed", "moving")
        raise InputError(f"--{given} was given without --{missing}; a pair needs both files.")
    labels = (moving_label, fixed_label)
    for name, path in (("moving image", moving), ("fixed image", fixed), *zip(LABEL_NAMES, labels, strict=True)):
        if path is not None and not Path(path).exists():
            raise InputError(f"The {name} {path} does not exist.")
    names = [Path(path).name.split(".")[0] for path in (moving, fixed)]
    if names[0] == names[1]:
        names = [
            f"{Path(path).resolve().parent.name}-{name}" for path, name in zip((moving, fixed), names, strict=True)
        ]
    subjects = [{"id": name, "image": str(path)} for name, path in zip(names, (moving, fixed), strict=True)]
    for subject, path in zip(subjects, labels, strict=True):
        if path is not None:
            subject["label"] = str(path)
    return Request(subjects, [(0, 1)])


def pair_name(moving_id: str, fixed_id: str) -> str:
    """How the files of a pair begin."""
    return f"{moving_id}_to_{fixed_id}"

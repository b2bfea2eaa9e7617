# SPDX-License-Identifier: Apache-2.0
"""Abdominal CT of Learn2Reg 2020 task 3 (BTCV): 30 people with labels of 13 organs, in two layouts.

* as EOIR reads it: ``img/imgNNNN.nii.gz``, ``label/labelNNNN.nii.gz``;
* as Learn2Reg gives it out: ``imagesTr/AbdomenCTCT_NNNN_0000.nii.gz``, ``labelsTr/AbdomenCTCT_NNNN_0000.nii.gz``.

Sections are those of EOIR's split: people 1-20 train, 21-23 validate, 24-30 test. No pairs are listed: every
ordered pair of a section counts, 380 to train with, 6 and 42 to measure.

The dual-pyramid benchmark has BTCV's own numbers, 1-10, 21-40 and 61-80, the last without labels:
:func:`read_abdomenct_dp`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from common.checks import InputError
from common.data.readers.listing import Listing, Subject, published_listings, refuse_list
from common.data.splits import load_split

_logger = logging.getLogger(__name__)
_KEYS = {"training": "train", "validation": "val", "test": "test"}
_LAYOUTS = (
    ("img", r"img(\d{4})\.nii\.gz", "label", "label{}.nii.gz"),
    ("imagesTr", r"AbdomenCTCT_(\d{4})_0000\.nii\.gz", "labelsTr", "AbdomenCTCT_{}_0000.nii.gz"),
)


def read_abdomenct(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of a folder of the abdominal CT task.

    Args:
        dataset_dir: folder of the data set.
        dataset_json: not for this reader, whose split is the published one; use the reader ``datalist``.

    Returns:
        Listing per section; sections without subjects are absent. A subject without a label file has no label.

    Raises:
        InputError: neither layout is found, none of its scans is one of the split's 30, or a list of one's own is asked
            for.
    """
    refuse_list("abdomenct", dataset_json)
    people = _people(dataset_dir)
    if not people:
        raise InputError(
            f"The folder {dataset_dir} is no known form of the abdominal CT task; expected img/imgNNNN.nii.gz and "
            "label/labelNNNN.nii.gz, or imagesTr and labelsTr with AbdomenCTCT_NNNN_0000.nii.gz."
        )
    split = load_split("abdomenct_eoir")
    _compare_with_split(dataset_dir, people, {number for key in _KEYS.values() for number in split[key]})
    listings = {
        section: Listing([people[number] for number in split[key] if number in people])
        for section, key in _KEYS.items()
    }
    return {section: listing for section, listing in listings.items() if listing.subjects}


def read_abdomenct_dp(dataset_dir: Path, dataset_json: str | None = None) -> dict[str, Listing]:
    """Sections of the dual-pyramid benchmark: 30 people train, 10 validate and 10 test, 45 pairs each.

    H. Liu et al., MIDL 2025 short papers; repository HengjieLiu/Unsupervised-DL-DIR-Revisited.

    Args:
        dataset_dir: folder with files ``imgNNNN.nii.gz`` and ``labelNNNN.nii.gz`` under BTCV's own numbers, in whatever
            folders below it.
        dataset_json: not for this reader, as for :func:`read_abdomenct`.

    Returns:
        Listing per section; sections without subjects are absent. A subject without a label file has no label.

    Raises:
        InputError: no such file is found, or a list of one's own is asked for.
    """
    refuse_list("abdomenct_dp", dataset_json)
    files = {path.name: path for path in sorted(dataset_dir.rglob("*.nii.gz"), reverse=True)}
    people: dict[str, Subject] = {}
    for name in sorted(files):
        match = re.fullmatch(_LAYOUTS[0][1], name)
        if match is not None:
            people[match[1]] = {"id": match[1], "image": str(files[name])}
            label = files.get(_LAYOUTS[0][3].format(match[1]))
            people[match[1]] |= {} if label is None else {"label": str(label)}
    if not people:
        raise InputError(
            f"The folder {dataset_dir} has no scans under BTCV's own numbers, as the dual-pyramid benchmark has them; "
            "expected imgNNNN.nii.gz and labelNNNN.nii.gz. For the numbers of Learn2Reg use --reader abdomenct."
        )
    listings = published_listings(dataset_dir, "abdomenct_dp_v2", people, "pairs_test")
    return {section: listing for section, listing in listings.items() if listing.subjects}


def _people(dataset_dir: Path) -> dict[int, Subject]:
    """Subject of each number, in the first layout that is there."""
    for images, pattern, labels, label_name in _LAYOUTS:
        found: dict[int, Subject] = {}
        for file in sorted((dataset_dir / images).glob("*.nii.gz")):
            match = re.fullmatch(pattern, file.name)
            if match is None:
                continue
            number = match.group(1)
            found[int(number)] = {"id": number, "image": str(file)}
            label = dataset_dir / labels / label_name.format(number)
            if label.is_file():
                found[int(number)]["label"] = str(label)
        if found:
            return found
    return {}


def _compare_with_split(dataset_dir: Path, people: dict[int, Subject], published: set[int]) -> None:
    if not published & set(people):
        raise InputError(
            f"None of the {len(people)} scans in {dataset_dir} is one of the 30 of the published split, 0001 to "
            "0030; use the reader 'datalist' with a list of your own."
        )
    missing, further = sorted(published - set(people)), sorted(set(people) - published)
    if missing:
        _logger.warning(
            "%s lacks %d of the 30 people of the published split, such as %04d.",
            *(dataset_dir, len(missing), missing[0]),
        )
    if further:
        _logger.warning(
            "%s has %d scans outside the published split, such as %04d, which are left out; the split counts 1 to 30 "
            "without the gaps of BTCV's own numbers.",
            *(dataset_dir, len(further), further[0]),
        )

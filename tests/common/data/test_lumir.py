# SPDX-License-Identifier: Apache-2.0
"""Both forms of the LUMIR list, the files without a list, and lists that lead astray."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data import load_split, read_section

TRAINING, LABELLED, PAIRS = [0, 1, 2], [3364, 3365, 3366], [(3455, 3454), (3456, 3455), (3485, 3484)]
IMAGES = "/imagesTr/LUMIRMRI_{:04d}_0000.nii.gz".format
VALIDATION = "/imagesVal/LUMIRMRI_{:04d}_0000.nii.gz".format
LABELS = "/SanityCheckLabelsTr/LUMIRMRI_{:04d}_0000.nii.gz".format


def pairs() -> list[dict[str, str]]:
    return [{"fixed": VALIDATION(fixed), "moving": VALIDATION(moving)} for fixed, moving in PAIRS]


EDITED: dict[str, Any] = {
    "training": [{"image": IMAGES(number)} for number in TRAINING],
    "validation": [{"image": IMAGES(number), "seg": LABELS(number)} for number in LABELLED],
    "test": pairs(),
}
OFFICIAL: dict[str, Any] = {
    "name": "LUMIR",
    "numTraining": 6,
    "training": [{"image": "." + IMAGES(number)} for number in TRAINING + LABELLED],
    "validation": pairs(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Empty files under the names of the release."""
    names = [IMAGES(number) for number in TRAINING + LABELLED] + [LABELS(number) for number in LABELLED]
    for name in names + [VALIDATION(number) for pair in PAIRS for number in pair]:
        path = tmp_path / name[1:]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def write_list(folder: Path, content: Any) -> Path:
    (folder / "LUMIR_dataset.json").write_text(json.dumps(content))
    return folder


def named(folder: Path, section: str) -> list[tuple[str, str]]:
    """(fixed, moving) ids of a section."""
    listing = read_section(folder, "lumir", section)
    return [(listing.subjects[f]["id"], listing.subjects[m]["id"]) for m, f in listing.every_pair()]


@pytest.mark.parametrize("content", [EDITED, OFFICIAL], ids=["edited", "official"])
def test_both_lists_give_the_same_three_sections(folder: Path, content: dict[str, Any]) -> None:
    write_list(folder, content)
    training, validation, test = (read_section(folder, "lumir", s).subjects for s in ("training", "validation", "test"))
    assert [s["id"] for s in training] == ["LUMIRMRI_0000", "LUMIRMRI_0001", "LUMIRMRI_0002"]
    assert not any("label" in subject for subject in training + test)
    assert [s["id"] for s in validation] == ["LUMIRMRI_3364", "LUMIRMRI_3365", "LUMIRMRI_3366"]
    assert [s["label"] for s in validation] == [str(folder / LABELS(number)[1:]) for number in LABELLED]
    assert len(named(folder, "validation")) == 6
    assert named(folder, "test") == [(f"LUMIRMRI_{fixed}", f"LUMIRMRI_{moving}") for fixed, moving in PAIRS]


def test_without_a_list_the_published_split_is_applied(folder: Path) -> None:
    assert len(read_section(folder, "lumir", "training").subjects) == 3
    assert len(named(folder, "validation")) == 6
    assert named(folder, "test") == [(f"LUMIRMRI_{fixed}", f"LUMIRMRI_{moving}") for fixed, moving in PAIRS]


def test_complete_release_without_a_list_has_the_published_numbers(tmp_path: Path) -> None:
    split = load_split("lumir")["eoir_variant"]
    numbers = [n for first, last in split["training_id_ranges"] for n in range(first, last + 1)]
    for name in [IMAGES(n) for n in (*numbers, *range(3364, 3374))] + [LABELS(n) for n in range(3364, 3374)]:
        (tmp_path / name[1:]).parent.mkdir(exist_ok=True)
        (tmp_path / name[1:]).touch()
    assert len(read_section(tmp_path, "lumir", "training").subjects) == 3374
    assert len(named(tmp_path, "validation")) == 90


def test_official_list_without_the_ten_labels_validates_on_its_pairs(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in LABELLED:
        (folder / LABELS(number)[1:]).unlink()
    write_list(folder, OFFICIAL)
    with caplog.at_level(logging.WARNING):
        assert named(folder, "validation") == named(folder, "test")
    assert "no labels in SanityCheckLabelsTr" in caplog.text
    assert len(read_section(folder, "lumir", "training").subjects) == 6


def test_labels_of_the_pairs_are_found_where_somebody_has_them(folder: Path) -> None:
    write_list(folder, OFFICIAL)
    (folder / "labelsVal").mkdir()
    label = folder / "labelsVal" / "LUMIRMRI_3455_0000.nii.gz"
    label.touch()
    test = read_section(folder, "lumir", "test").subjects
    assert [s.get("label") for s in test if s["id"].endswith("3455")] == [str(label)]


@pytest.mark.parametrize(
    "path",
    ["../other/a.nii.gz", "/imagesTr/../../other/a.nii.gz", "/etc/passwd", "/home/a/imagesTr/b.nii.gz", "C:/a.nii.gz"],
)
@pytest.mark.parametrize("key", ["image", "seg", "fixed"])
def test_path_out_of_the_folder_is_refused(folder: Path, path: str, key: str) -> None:
    entry = {"image": IMAGES(0), key: path} if key != "fixed" else {"fixed": path, "moving": IMAGES(0)}
    write_list(folder, {**EDITED, "validation": [entry]})
    with pytest.raises(
        InputError, match=f"LUMIR_dataset.json names .*{path.lstrip('/')}, which leaves the data folder"
    ):
        read_section(folder, "lumir", "training")


def test_pair_with_a_missing_file_is_named_and_hinders_no_other_section(folder: Path) -> None:
    write_list(folder, OFFICIAL)
    (folder / VALIDATION(3485)[1:]).unlink()
    with pytest.raises(InputError, match=r"1 listed file\(s\) of the test section .*/LUMIRMRI_3485_0000.nii.gz"):
        read_section(folder, "lumir", "test")
    assert len(read_section(folder, "lumir", "training").subjects) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"training": 3384}, "'training' .* is 3384, but a list"),
        ({"training": [{"file": "a"}]}, "has the entry .* under 'training'; expected"),
        ({"training": [7]}, "has the entry 7 under 'training'"),
        ({"training": [{"image": 7}]}, "has the entry 7 where a file path is expected"),
        ([], "holds a JSON list"),
    ],
)
def test_damaged_list_is_explained(folder: Path, content: Any, message: str) -> None:
    write_list(folder, content)
    with pytest.raises(InputError, match=message):
        read_section(folder, "lumir", "training")


def test_folder_of_something_else_is_explained(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(InputError, match="no known form of LUMIR; expected LUMIR_dataset.json"):
        read_section(tmp_path, "lumir")


def test_training_pairs_are_used_as_listed_and_validation_stays_out(folder: Path) -> None:
    listed = [{"fixed": IMAGES(2), "moving": IMAGES(0)}, {"fixed": VALIDATION(3455), "moving": VALIDATION(3454)}]
    write_list(folder, {**OFFICIAL, "training_paired_images": listed})
    assert named(folder, "training") == [("LUMIRMRI_0002", "LUMIRMRI_0000")]
    assert len(named(folder, "validation")) == 6 and len(named(folder, "test")) == 3

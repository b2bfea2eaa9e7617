# SPDX-License-Identifier: Apache-2.0
"""Both layouts of LPBA40, their splits and the labels that count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.checks import InputError
from common.data import load_split, read_section
from common.data.readers.lpba40 import LABELS, LEFT_OUT

PEOPLE = tuple(f"S{number:02d}" for number in range(1, 41))
IMAGE, LABEL = "delineation.skullstripped", "delineation.structure.label"


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def write_pickles(folder: Path) -> None:
    """As mmipt has them."""
    touch(folder / "S01.pkl")
    touch(*(folder / ("Test" if person < "S11" else "Train") / f"{person}.pkl" for person in PEOPLE[1:]))


def write_aligned(folder: Path) -> None:
    """As most code that was written for VoxelMorph in PyTorch has them."""
    touch(folder / "fixed.nii.gz")
    touch(*(folder / ("test" if n < "S11" else "train") / f"{n}.{IMAGE}.nii.gz" for n in PEOPLE[1:]))
    touch(*(folder / "label" / f"{person}.{LABEL}.nii.gz" for person in PEOPLE))


def write_delineation(folder: Path, image: str = IMAGE, ending: str = ".nii.gz") -> None:
    """One folder for each brain."""
    touch(*(folder / n / f"{n}.{kind}{ending}" for n in PEOPLE for kind in (image, LABEL)))


def pairs(folder: Path, section: str) -> list[tuple[str, str]]:
    listing = read_section(folder, "lpba40", section)
    return [(listing.subjects[moving]["id"], listing.subjects[fixed]["id"]) for moving, fixed in listing.every_pair()]


@pytest.mark.parametrize("write", [write_pickles, write_aligned])
def test_aligned_scans_have_the_first_brain_as_moving_image(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    assert pairs(tmp_path, "training") == [("S01", person) for person in PEOPLE[10:]]
    for section in ("validation", "test"):
        assert pairs(tmp_path, section) == [("S01", person) for person in PEOPLE[1:10]]
    for subject in read_section(tmp_path, "lpba40", "test").subjects:
        pickled = subject["image"].endswith(".pkl")
        label = subject["image"] if pickled else str(tmp_path / "label" / f"{subject['id']}.{LABEL}.nii.gz")
        assert subject["label"] == label


def test_the_atlas_among_the_scans_is_no_pair_with_itself(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    touch(tmp_path / "Train" / "S01.pkl")
    assert pairs(tmp_path, "training") == [("S01", person) for person in PEOPLE[10:]]


@pytest.mark.parametrize("below", ["", "delineation_space"])
@pytest.mark.parametrize("image", [IMAGE, "delineation.brain.bfc"])
def test_delineation_space_has_the_published_split(tmp_path: Path, below: str, image: str) -> None:
    write_delineation(tmp_path / below, image)
    split = load_split("lpba40_sitreg")
    for section, key, count in (("training", "train", 600), ("validation", "validate", 20), ("test", "test", 90)):
        listing = read_section(tmp_path, "lpba40", section)
        assert [subject["id"] for subject in listing.subjects] == split[key] and len(listing.every_pair()) == count
    first = read_section(tmp_path, "lpba40", "training").subjects[0]
    folder = tmp_path / below / "S01"
    assert first == {
        "id": "S01",
        "image": str(folder / f"S01.{image}.nii.gz"),
        "label": str(folder / f"S01.{LABEL}.nii.gz"),
    }


def test_some_of_the_brains_are_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_delineation(tmp_path)
    for person in ("S14", "S16"):
        (tmp_path / person / f"{person}.{IMAGE}.nii.gz").unlink()
    assert [s["id"] for s in read_section(tmp_path, "lpba40", "validation").subjects] == ["S19", "S26", "S39"]
    assert "lacks 2 of the 40 brains, such as S14" in caplog.text


def test_labels_that_count_are_all_but_cerebellum_and_brain_stem() -> None:
    assert len(set(LABELS)) == 54 and len({*LABELS, *LEFT_OUT}) == 56
    assert min(LABELS) == 21 and max(LABELS) == 166 and {34, 41, 50, 61, 68, 81, 92, 101, 102, 121, 122} <= set(LABELS)


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        ("Train/S02.pkl", "has no atlas; expected S01.pkl, fixed.nii.gz or S01.nii.gz beside the folders of scans."),
        (f"S01/S01.{IMAGE}.hdr", "holds Analyze files, whose headers do not say how a scan lies; save them"),
        ("S01.nii.gz", "is no known form of LPBA40; expected S01.pkl or fixed.nii.gz beside folders train and test"),
    ],
)
def test_other_folders_are_refused(tmp_path: Path, file: str, sentence: str) -> None:
    touch(tmp_path / file)
    with pytest.raises(InputError, match=re.escape(sentence)):
        read_section(tmp_path, "lpba40", "training")


def test_lists_are_refused(tmp_path: Path) -> None:
    write_pickles(tmp_path)
    with pytest.raises(InputError, match="'lpba40' takes the published split and no list mine.json"):
        read_section(tmp_path, "lpba40", "training", "mine.json")

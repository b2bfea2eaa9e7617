# SPDX-License-Identifier: Apache-2.0
"""IXI as TransMorph's authors give it out: the folders decide, the atlas moves."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.data import CheckSubjectd, ClassesOfLabelsd, LoadSubjectd, PairSampler, read_section
from common.data.readers.ixi import LABELS, read_ixi

ASEG = (
    *(0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 30, 31, 41, 42, 43, 44, 46, 47, 49, 50, 51),
    *(52, 53, 54, 58, 60, 62, 63, 72, 77, 80, 85, 251, 252, 253, 254, 255),
)
"""The 46 values of label maps, in the order in which the authors count them."""
EVALUATED = (1, 2, 3, *range(5, 17), 18, *range(20, 24), *range(25, 33), 34, 36)
"""Those that their evaluation takes."""


def write(folder: Path, ending: str = ".pkl", folders: tuple[str, ...] = ("Train", "Val", "Test")) -> None:
    """Empty files: three scans to train with, two to validate, one to test."""
    names = [f"{name}/subject_{i}" for count, name in zip((3, 2, 1), folders, strict=True) for i in range(count)]
    for name in ("atlas", *names):
        file = folder / f"{name}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        if ending != ".pkl":
            (folder / f"{name}_seg{ending}").touch()
    (folder / folders[0] / f"._subject_0{ending}").touch()


def pairs(folder: Path, section: str) -> list[tuple[str, str]]:
    listing = read_section(folder, "ixi", section)
    return [(listing.subjects[moving]["id"], listing.subjects[fixed]["id"]) for moving, fixed in listing.every_pair()]


@pytest.mark.parametrize("ending", [".pkl", ".nii.gz", ".nii"])
@pytest.mark.parametrize("folders", [("Train", "Val", "Test"), ("train", "val", "test")])
def test_the_atlas_moves_onto_each_scan_of_the_folder(tmp_path: Path, ending: str, folders: tuple[str, ...]) -> None:
    write(tmp_path, ending, folders)
    assert pairs(tmp_path, "training") == [("atlas", f"subject_{i}") for i in range(3)]
    assert pairs(tmp_path, "validation") == [("atlas", f"subject_{i}") for i in range(2)]
    assert pairs(tmp_path, "test") == [("atlas", "subject_0")]
    atlas, first = read_section(tmp_path, "ixi", "validation").subjects[:2]
    mark = "" if ending == ".pkl" else "_seg"
    assert atlas["label"] == str(tmp_path / f"atlas{mark}{ending}")
    assert first == {
        "id": "subject_0",
        "image": str(tmp_path / folders[1] / f"subject_0{ending}"),
        "label": str(tmp_path / folders[1] / f"subject_0{mark}{ending}"),
    }


def test_an_epoch_has_each_scan_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    write(tmp_path)
    listing = read_section(tmp_path, "ixi", "training")

    def epoch(number: int) -> list[tuple[int, int]]:
        sampler = PairSampler(listing.subjects, pairs=listing.pairs, seed=3, flip_axes=(0, 1, 2))
        sampler.set_epoch(number)
        return [(item.moving, item.fixed) for item in sampler]

    drawn = [epoch(number) for number in range(8)]
    assert all(sorted(one) == [(0, 1), (0, 2), (0, 3)] for one in drawn) and len(set(map(tuple, drawn))) > 2
    assert drawn == [epoch(number) for number in range(8)]


def test_labels_that_count_are_the_thirty_of_the_published_evaluation() -> None:
    assert LABELS == tuple(ASEG[index] for index in EVALUATED) and len(set(LABELS)) == 30


def test_pickles_are_loaded_with_the_labels_that_count_as_classes(tmp_path: Path) -> None:
    write(tmp_path)
    label = np.array(ASEG[:45], np.int16).reshape(3, 3, 5)
    image = np.linspace(0, 1, 45, dtype=np.float32).reshape(3, 3, 5)
    (tmp_path / "atlas.pkl").write_bytes(pickle.dumps((image, label)))
    atlas = read_section(tmp_path, "ixi", "training").subjects[0]
    subject = CheckSubjectd(labels=range(256), counted=LABELS)(LoadSubjectd()(atlas))
    torch.testing.assert_close(subject["image"].as_tensor()[0], torch.from_numpy(image))
    classes = ClassesOfLabelsd(LABELS)(subject)["label"]
    assert torch.unique(classes).tolist() == list(range(31))


def test_a_pickle_of_anything_but_arrays_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "atlas.pkl").write_bytes(pickle.dumps((np.zeros((2, 2, 2)), Path("/"))))
    atlas = read_section(tmp_path, "ixi", "training").subjects[0]
    with pytest.raises(InputError, match=r"atlas.pkl asks for pathlib.* but only NumPy arrays are admitted"):
        LoadSubjectd()(atlas)
    (tmp_path / "atlas.pkl").write_bytes(pickle.dumps({"image": [1, 2]}))
    with pytest.raises(InputError, match="does not hold a tuple of numeric NumPy arrays"):
        LoadSubjectd()(atlas)


@pytest.mark.parametrize("missing", ["atlas.pkl", "Train"])
def test_a_folder_without_atlas_or_scans_is_refused(tmp_path: Path, missing: str) -> None:
    write(tmp_path, folders=("Train", "Train", "Train"))
    (tmp_path / missing).rename(tmp_path / "other")
    with pytest.raises(
        InputError, match=r"no known form of IXI; expected atlas.pkl beside folders Train, Val and Test"
    ):
        read_section(tmp_path, "ixi", "training")


def test_sections_without_scans_and_lists_are_refused(tmp_path: Path) -> None:
    write(tmp_path, folders=("Train", "Train", "Train"))
    with pytest.raises(InputError, match=r"no section 'validation'.*subjects in: training\."):
        read_section(tmp_path, "ixi", "validation")
    with pytest.raises(InputError, match="takes the published split and no list mine.json"):
        read_section(tmp_path, "ixi", "training", "mine.json")


def test_only_another_split_than_the_published_one_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path)
    read_ixi(tmp_path)
    assert "has 3, 2 and 1 scans to train, validate and test with" in caplog.text
    caplog.clear()
    for name, count in (("Train", 403), ("Val", 58), ("Test", 115)):
        for i in range(count):
            (tmp_path / name / f"subject_{i}.pkl").touch()
    with caplog.at_level(logging.INFO):
        assert [len(listing.every_pair()) for listing in read_ixi(tmp_path).values()] == [403, 58, 115]
    assert not caplog.text

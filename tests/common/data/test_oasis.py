# SPDX-License-Identifier: Apache-2.0
"""The three layouts of OASIS."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from common.checks import InputError
from common.data import SECTIONS, load_split, read_section


def write_learn2reg(folder: Path, numbers: list[int]) -> None:
    """Empty files under the names of the release; the list has everyone under training, as the official one."""
    listed = []
    for number in numbers:
        name = f"OASIS_{number:04d}_0000.nii.gz"
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / name).touch()
        listed.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
    (folder / "OASIS_dataset.json").write_text(json.dumps({"training": listed, "test": []}))


def write_neurite(folder: Path, numbers: list[int]) -> None:
    """Empty files in the folders of the neurite release."""
    for number in numbers:
        person = folder / f"OASIS_OAS1_{number:04d}_MR1"
        person.mkdir()
        for name in ("aligned_norm.nii.gz", "aligned_seg35.nii.gz", "norm.nii.gz"):
            (person / name).touch()
    (folder / "subjects.txt").touch()


def write_pickle(path: Path, *arrays: np.ndarray) -> None:
    """What the published loaders read."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(arrays))


def test_learn2reg_numbers_decide_the_sections(tmp_path: Path) -> None:
    write_learn2reg(tmp_path, list(range(1, 415)))
    training = read_section(tmp_path, "oasis", "training").subjects
    validation = read_section(tmp_path, "oasis", "validation").subjects
    assert (len(training), training[-1]["id"]) == (394, "OASIS_0394")
    assert (len(validation), validation[0]["id"], validation[-1]["id"]) == (20, "OASIS_0395", "OASIS_0414")
    assert all("label" in subject for subject in training + validation)


def test_learn2reg_validation_pairs_are_those_of_the_evaluation_configuration(tmp_path: Path) -> None:
    write_learn2reg(tmp_path, list(range(390, 415)))
    listing = read_section(tmp_path, "oasis", "validation")
    subjects, pairs = listing.subjects, listing.every_pair()
    named = [[s["id"].replace("OASIS_", "") + "_0000" for s in (subjects[f], subjects[m])] for m, f in pairs]
    assert named == load_split("l2r_eval_pairs")["OASIS_VAL"]["pairs"]


def test_learn2reg_training_uses_all_pairs(tmp_path: Path) -> None:
    write_learn2reg(tmp_path, [1, 2, 3])
    assert len(read_section(tmp_path, "oasis", "training").every_pair()) == 6


def test_learn2reg_pairs_are_those_of_the_list(tmp_path: Path) -> None:
    def pair(fixed: int, moving: int) -> dict[str, str]:
        fixed_name, moving_name = (f"imagesTr/OASIS_{number:04d}_0000.nii.gz" for number in (fixed, moving))
        return {"fixed": fixed_name, "moving": moving_name}

    def write(**lists: list[dict[str, str]]) -> None:
        content = json.loads((tmp_path / "OASIS_dataset.json").read_text())
        (tmp_path / "OASIS_dataset.json").write_text(json.dumps({**content, **lists}))

    write_learn2reg(tmp_path, [3, 5, 8, 395, 396, 398])
    write(training_paired_images=[pair(8, 3)], registration_val=[pair(395, 398)])
    listings = {section: read_section(tmp_path, "oasis", section) for section in ("training", "validation")}
    ids = {section: [subject["id"] for subject in listing.subjects] for section, listing in listings.items()}
    assert ids == {"training": ["OASIS_0003", "OASIS_0008"], "validation": ["OASIS_0395", "OASIS_0398"]}
    assert (listings["training"].pairs, listings["validation"].pairs) == ([(0, 1)], [(1, 0)])
    write(training_paired_images=[pair(8, 396)])
    with pytest.raises(InputError, match="OASIS_0396 in a training pair, but by its number .*--reader datalist"):
        read_section(tmp_path, "oasis")


def test_learn2reg_folder_with_other_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "OASIS_dataset.json").write_text('{"training": ["imagesTr/brain.nii.gz"]}')
    with pytest.raises(InputError, match="not named OASIS_NNNN_0000.nii.gz"):
        read_section(tmp_path, "oasis")


def test_neurite_people_are_split_by_the_rank_of_their_numbers(tmp_path: Path) -> None:
    numbers = load_split("oasis_lkunet")["train_3d"] + list(range(438, 458))
    write_neurite(tmp_path, numbers)
    split, rank = load_split("oasis_dp_v1"), {f"OASIS_OAS1_{n:04d}_MR1": f"{i:04d}" for i, n in enumerate(numbers, 1)}
    listings = {name: read_section(tmp_path, "oasis", name) for name in ("training", "validation", "test")}
    sections = {name: listing.subjects for name, listing in listings.items()}
    for name, key in (("training", "train"), ("validation", "val"), ("test", "test")):
        assert [rank[s["id"]] for s in sections[name]] == split[key]
    for name, key in (("validation", "pairs_val"), ("test", "pairs_test_200")):
        pairs = listings[name].every_pair()
        assert [[rank[sections[name][f]["id"]], rank[sections[name][m]["id"]]] for m, f in pairs] == split[key]
    assert sections["test"][0]["label"].endswith("aligned_seg35.nii.gz")


def test_learn2reg_people_of_the_dual_pyramid_benchmark(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_learn2reg(tmp_path, list(range(1, 416)))
    split = load_split("oasis_dp_v1")
    for name, key, listed in (("validation", "val", "pairs_val"), ("test", "test", "pairs_test_200")):
        listing = read_section(tmp_path, "oasis_dp", name)
        ids = [subject["id"].removeprefix("OASIS_") for subject in listing.subjects]
        assert ids == split[key] and [[ids[f], ids[m]] for m, f in listing.every_pair()] == split[listed]
    training = read_section(tmp_path, "oasis_dp", "training")
    assert [subject["id"].removeprefix("OASIS_") for subject in training.subjects] == split["train"]
    assert training.pairs is None and not caplog.text
    # Of 4, 236 and 13 the first two are a test pair.
    few = tmp_path / "few"
    few.mkdir()
    write_learn2reg(few, [4, 13, 236])
    listing = read_section(few, "oasis_dp", "test")
    assert [subject["id"] for subject in listing.subjects] == ["OASIS_0004", "OASIS_0236"] and listing.pairs == [(1, 0)]
    assert "lacks 411 people of the split oasis_dp_v1, such as 0001" in caplog.text


def test_the_dual_pyramid_benchmark_needs_people_that_can_be_told(tmp_path: Path) -> None:
    write_neurite(tmp_path, list(range(1, 21)))
    with pytest.raises(InputError, match="all 414 folders OASIS_OAS1_NNNN_MR1. For other forms .*--reader oasis"):
        read_section(tmp_path, "oasis_dp")
    write_neurite(tmp_path, list(range(21, 415)))
    assert len(read_section(tmp_path, "oasis_dp").subjects) == 300


def test_the_rank_rule_agrees_with_the_derived_map_of_people() -> None:
    numbers = load_split("oasis_lkunet")["train_3d"] + list(range(438, 458))
    for person in load_split("malf_to_l2r_oasis")["map"].values():
        number = int(person["oasis_subject"].split("_")[1])
        assert numbers.index(number) + 1 == int(person["l2r_oasis_id"])


def test_a_part_of_the_neurite_people_is_split_by_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_neurite(tmp_path, list(range(1, 21)))
    with caplog.at_level(logging.INFO):
        sections = [[s["id"] for s in read_section(tmp_path, "oasis", name).subjects] for name in SECTIONS]
    assert [len(ids) for ids in sections] == [14, 2, 4]
    assert sum(sections, []) == [f"OASIS_OAS1_{n:04d}_MR1" for n in range(1, 21)]
    assert "holds 20 of the 414 OASIS people" in caplog.text and "split by order" in caplog.text


def test_pickles_in_one_folder_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("p_0001", "p_0002", "p_0395_0396", "p_0396_0397"):
        (tmp_path / f"{name}.pkl").touch()
    assert [s["id"] for s in read_section(tmp_path, "oasis", "training").subjects] == ["0001", "0002"]
    validation = read_section(tmp_path, "oasis", "validation")
    assert [(s["id"], s["role"]) for s in validation.subjects[:2]] == [("0395", "fixed"), ("0396", "moving")]
    assert validation.pairs == [(1, 0), (3, 2)]
    assert all(s["image"] == s["label"] for s in validation.subjects)


def test_pickles_in_folders_per_section(tmp_path: Path) -> None:
    array = np.zeros((2, 2, 2))
    for name in ("Train/p_1.pkl", "Train/p_2.pkl", "Val/p_3_4.pkl"):
        write_pickle(tmp_path / name, array, array)
    assert len(read_section(tmp_path, "oasis", "training").subjects) == 2
    assert len(read_section(tmp_path, "oasis", "validation").subjects) == 2
    with pytest.raises(InputError, match="subjects in: training, validation"):
        read_section(tmp_path, "oasis", "test")


def test_unknown_layout_is_explained(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(InputError, match="no known form of OASIS"):
        read_section(tmp_path, "oasis")

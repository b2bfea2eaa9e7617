# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.checks import InputError
from common.evaluation.pair_lists import ListedPair, read_pair_list

CONFIG: dict[str, Any] = {
    "task_name": "OASIS",
    "evaluation_methods": [
        {"name": "LogJacDetStd", "metric": "sdlogj"},
        {"name": "DSC", "metric": "dice", "labels": [1, 2, 3]},
        {"name": "HD95", "metric": "hd95", "labels": [1, 2, 3]},
        {"name": "TRE_kp", "metric": "tre", "dest": "keypoints"},
    ],
    "expected_shape": [16, 18, 20, 3],
    "eval_pairs": [{"fixed": "./imagesTr/OASIS_0395_0000.nii.gz", "moving": "./imagesTr/OASIS_0396_0000.nii.gz"}],
    "masked_evaluation": True,
}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_csv_gives_pairs_and_what_else_it_says(tmp_path: Path) -> None:
    content = "fixed,moving,field,cpu_seconds,seconds,note,inverse\na,b,x.npy,2,1.5,hello,y.npy\nc,d,,,,,\n"
    path = written(tmp_path / "p.csv", content)
    first = ListedPair("b", "a", "x.npy", costs=(("seconds", 1.5), ("cpu_seconds", 2.0)), inverse="y.npy")
    assert read_pair_list(path).pairs == (first, ListedPair("d", "c"))


def test_csv_columns_go_by_name_not_by_place(tmp_path: Path) -> None:
    path = written(tmp_path / "p.csv", "moving_id, fixed_id\nb, a\n")
    assert read_pair_list(path).pairs == (ListedPair("b", "a"),)


def test_json_list_is_fixed_then_moving(tmp_path: Path) -> None:
    path = written(tmp_path / "p.json", [["a", "b"], {"moving": "d", "fixed": "c", "field": "f.npz"}])
    assert read_pair_list(path).pairs == (ListedPair("b", "a"), ListedPair("d", "c", "f.npz"))
    assert read_pair_list([("a", "b")]).pairs == (ListedPair("b", "a"),)


def test_learn2reg_configuration_says_what_to_measure(tmp_path: Path) -> None:
    listed = read_pair_list(written(tmp_path / "c.json", CONFIG))
    challenge = listed.challenge
    assert challenge is not None and not challenge.lumir and challenge.masked
    assert (challenge.name, challenge.labels, challenge.shape) == ("OASIS", (1, 2, 3), (16, 18, 20))
    assert [(m.name, m.metric, m.dest) for m in challenge.metrics][3] == ("TRE_kp", "tre", "keypoints")
    assert listed.pairs[0].moving == "./imagesTr/OASIS_0396_0000.nii.gz"


def test_lumir_dialect_is_known_by_its_name(tmp_path: Path) -> None:
    content = {**CONFIG, "name": "LUMIR"}
    del content["task_name"]
    challenge = read_pair_list(written(tmp_path / "c.json", content)).challenge
    assert challenge is not None and challenge.lumir


def test_data_list_gives_its_validation_pairs(tmp_path: Path) -> None:
    for name in ("imagesTr", "labelsTr"):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4))
            nibabel.save(image, tmp_path / name / f"T_000{number}_0000.nii.gz")
    files = [f"./imagesTr/T_000{number}_0000.nii.gz" for number in range(5)]
    content: dict[str, Any] = {
        "training": [{"image": file} for file in files],
        "registration_val": [{"fixed": files[0], "moving": files[2]}],
    }
    pairs = read_pair_list(written(tmp_path / "dataset.json", content)).pairs
    assert [(Path(p.fixed).name, Path(p.moving).name) for p in pairs] == [("T_0000_0000.nii.gz", "T_0002_0000.nii.gz")]
    assert pairs[0].fixed_label is not None and Path(pairs[0].fixed_label).parent.name == "labelsTr"
    assert len(read_pair_list(tmp_path / "dataset.json", "training").pairs) == 6
    with pytest.raises(InputError, match="no test section"):
        read_pair_list(tmp_path / "dataset.json", "test")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", "a,b\nc,d\n", "must name the columns moving,fixed"),
        ("p.csv", "fixed,moving\n", "holds no pair"),
        ("p.csv", "fixed,moving\na,b\na,b\n", "twice"),
        ("p.csv", "fixed,moving\na,\n", "expected moving and fixed"),
        ("p.csv", "fixed,moving,seconds\na,b,long\n", "'long' as seconds"),
        ("p.json", [{"moving": "a", "fixed": "b", "peak_memory_gb": [1]}], "gives .1. as peak_memory_gb"),
        ("p.json", "{", "not valid JSON"),
        ("p.json", "3", "JSON int"),
        ("p.json", [["a"]], "expected moving and fixed"),
        ("p.json", {"eval_pairs": [["a", "b"]]}, "damaged"),
        ("p.json", {**CONFIG, "evaluation_methods": [{"name": "x", "metric": "magic"}]}, "asks for 'magic'"),
        ("p.txt", "a b", "neither .csv nor .json"),
    ],
)
def test_damaged_lists_are_named(tmp_path: Path, name: str, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_pair_list(written(tmp_path / name, content))


def test_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_pair_list(tmp_path / "absent.csv")


def test_lists_of_pairs_may_begin_with_a_byte_order_mark_and_paths_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for name, text in (("p.json", '[["a", "~/b"]]'), ("p.csv", "fixed,moving\na,~/b\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        (pair,) = read_pair_list(tmp_path / name).pairs
        assert (pair.moving, pair.fixed) == ("/home/me/b", "a")

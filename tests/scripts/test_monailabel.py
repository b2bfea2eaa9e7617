# SPDX-License-Identifier: Apache-2.0
"""The app for MONAI Label without MONAI Label: its words, its worker, and what passes between them."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest

from common.checks import InputError
from common.io.images import Image
from scripts.monailabel.client import Worker, WorkerError
from scripts.monailabel.conf import settings_of
from scripts.monailabel.worker import Desk, serve

AFFINE = np.diag([-2.0, 1.0, 1.0, 1.0])
ECHO = """
import json, os, sys
print(json.dumps({"answer": {"name": "echo", "version": "1"}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["task"] == "die":
        os._exit(3)
    wrong = {"error": "No such scan."} if request["task"] == "fail" else {"answer": request}
    print(json.dumps(wrong), flush=True)
"""


# What --conf says


@pytest.mark.parametrize(
    ("conf", "sentence"),
    [
        ({}, "has no bundle: start it with --conf bundle NAME"),
        ({"bundle": "b", "bundles": "x"}, "--conf bundles is unknown; there are bundle, options"),
        ({"bundle": "b", "options": "{"}, "--conf options is no JSON"),
        ({"bundle": "b", "options": "[1]"}, "--conf options is not an object"),
        ({"bundle": "b", "trust": "yes"}, "--conf trust yes is neither true nor false"),
        ({"bundle": "b", "python": "/nowhere/python"}, "/nowhere/python is no program"),
        ({"bundle": "b", "atlases": "0"}, "--conf atlases 0 is no number from 1 on"),
        ({"bundle": "b", "labels": "/nowhere.json"}, "/nowhere.json: No such file"),
    ],
)
def test_words_that_cannot_be_used_are_refused(conf: dict[str, str], sentence: str) -> None:
    with pytest.raises(WorkerError, match=sentence):
        settings_of(conf)


def test_words_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"stem": 35}')
    (tmp_path / "own").mkdir()
    found = settings_of(
        {
            "bundle": os.path.relpath(tmp_path / "own"),
            "options": '{"affine": true}',
            "labels": str(tmp_path / "labels.json"),
            "trust": "True",
        }
    )
    assert found.bundle == {"bundle": str(tmp_path / "own"), "options": {"affine": True}, "trust": True}
    assert found.labels == {"stem": 35} and found.python is None and found.atlases == 3


def test_labels_are_whole_numbers(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('{"stem": true}')
    with pytest.raises(WorkerError, match="values of labels are whole numbers"):
        settings_of({"bundle": "b", "labels": str(tmp_path / "labels.json")})


# The process


def test_a_worker_answers_refuses_dies_and_is_started_anew() -> None:
    worker = Worker([sys.executable, "-S", "-c", ECHO])
    try:
        assert worker.start() == {"name": "echo", "version": "1"}
        assert worker.ask("say", word="ä\n") == {"task": "say", "word": "ä\n"}
        with pytest.raises(WorkerError, match="^No such scan.$"):
            worker.ask("fail")
        with pytest.raises(WorkerError, match=r"ended while it worked on a request \(die\), exit status 3"):
            worker.ask("die")
        assert worker.ask("say")["task"] == "say"
    finally:
        worker.close()


def test_a_worker_that_cannot_start_says_why() -> None:
    with pytest.raises(WorkerError, match="cannot be started by /nowhere/python: No such file"):
        Worker(["/nowhere/python"]).start()
    with pytest.raises(WorkerError, match="ended while it loaded the bundle, exit status 1"):
        Worker([sys.executable, "-S", "-c", "raise SystemExit(1)"]).start()


# What it answers


class Shifted:
    """A bundle that finds a shift by two voxels, whatever it is asked."""

    name, version = "shifted", "1.0"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def register(self, moving: Any, fixed: Any, **options: Any) -> Any:
        if "missing" in str(moving):
            raise InputError("missing.nii.gz does not exist.")
        self.asked.append(Path(str(moving)).name)
        label = options["moving_label"]
        label = nibabel.load(label) if isinstance(label, str) else label
        image, values, scan = (np.asarray(file.dataobj) for file in (nibabel.load(moving), label, nibabel.load(fixed)))
        return SimpleNamespace(
            warped=Image(np.roll(image, 2, 0), AFFINE, "warped"),
            warped_label=Image(np.roll(values, 2, 0), AFFINE, "label"),
            registration=SimpleNamespace(pair={"fixed_scan": scan}),
        )


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, str]:
    """A target, two atlases and their label maps; the first atlas is the target, moved."""
    target = np.zeros((16, 12, 10), np.float32)
    target[5:11, 3:9, 3:7] = np.random.default_rng(0).uniform(50, 100, (6, 6, 4))
    other = np.roll(np.where(target > 0, 150 - target, 0), -2, 0)
    images = {"target": target, "like": np.roll(target, -2, 0), "unlike": other[:, ::-1].copy()}
    found = {}
    for name, values in images.items():
        found[name] = str(tmp_path / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), AFFINE), found[name])
        found[f"{name}_label"] = str(tmp_path / f"{name}_label.nii.gz")
        nibabel.save(nibabel.Nifti1Image((values > 0).astype(np.int16) * 7, AFFINE), found[f"{name}_label"])
    return found


def _atlas(scans: dict[str, str], name: str) -> dict[str, str]:
    return {"name": name, "image": scans[name], "label": scans[f"{name}_label"]}


def test_labels_come_onto_the_target_with_its_affine(scans: dict[str, str], tmp_path: Path) -> None:
    desk = Desk(Shifted())
    label, confidence = str(tmp_path / "l.nii.gz"), str(tmp_path / "c.nii.gz")
    request = {
        "task": "propagate", "target": scans["target"], "atlases": [_atlas(scans, "like")], "count": 2,
        "vote": "similarity", "label": label, "confidence": confidence,
    }  # fmt: skip
    answer = desk.answer(request)
    file = nibabel.load(label)
    np.testing.assert_array_equal(np.asarray(file.dataobj), 7 * (np.asarray(nibabel.load(scans["target"]).dataobj) > 0))
    np.testing.assert_array_equal(file.affine, AFFINE)
    assert file.get_data_dtype() == np.uint8 and answer["label_values"] == [7]
    assert answer["similarities"]["like"] == 1 and answer["agreement"] is None
    assert float(np.asarray(nibabel.load(confidence).dataobj).min()) == 1
    # The same question again registers nothing.
    desk.answer(request)
    assert desk.bundle.asked == ["like.nii.gz"]
    # What lies in a file may have changed since: in the target's, in an atlas's image or in its labels.
    for count, name in enumerate(("target", "like", "like_label"), start=2):
        os.utime(scans[name], ns=(0, count))
        desk.answer(request)
        assert desk.bundle.asked == count * ["like.nii.gz"], name


def test_the_atlases_that_are_most_alike_are_taken_and_their_labels_renamed(
    scans: dict[str, str], tmp_path: Path
) -> None:
    desk = Desk(Shifted())
    atlases = [_atlas(scans, "unlike"), {**_atlas(scans, "like"), "values": {"7": 41}}]
    answer = desk.answer(
        {
            "task": "propagate", "target": scans["target"], "atlases": atlases, "count": 1, "vote": "majority",
            "label": str(tmp_path / "l.nii.gz"), "confidence": None,
        }
    )  # fmt: skip
    assert [*answer["similarities"]] == ["like"] and answer["label_values"] == [41]


def test_likeness_is_that_of_the_nearest_reference(scans: dict[str, str]) -> None:
    desk = Desk(Shifted())
    references = {name: scans[name] for name in ("like", "unlike")}
    found = desk.answer({"task": "likeness", "scans": {"target": scans["target"]}, "references": references})
    alone = desk.answer(
        {"task": "likeness", "scans": {"target": scans["target"]}, "references": {"u": scans["unlike"]}}
    )
    assert found["likeness"]["target"] > alone["likeness"]["target"]
    assert desk.answer({"task": "labels", "file": scans["like_label"]}) == {"values": [7]}


def test_what_fails_is_a_sentence_and_the_next_request_is_answered(scans: dict[str, str]) -> None:
    said: list[dict[str, Any]] = []
    missing = {"moving": "missing.nii.gz", "fixed": scans["target"], "result": "transform", "file": "f"}
    requests = [
        {"task": "register", **missing, "moving_label": None},
        {"task": "nonsense"},
        {"task": "about"},
    ]
    serve(Desk(Shifted()), io.StringIO("".join(json.dumps(request) + "\n" for request in requests)), said.append)
    assert said[0] == said[3] == {"answer": {"name": "shifted", "version": "1.0"}}
    assert said[1] == {"error": "missing.nii.gz does not exist."}
    assert said[2]["error"].startswith("There is no task 'nonsense'; there are about, propagate")

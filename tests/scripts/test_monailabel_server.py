# SPDX-License-Identifier: Apache-2.0
"""MONAI Label's own server, asked by REST; scripts/monailabel/README.md says how its environment is made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.api import load_bundle
from common.data.shapes3d import generate_shapes3d
from common.io.transforms import read_transform
from common.propagation import Atlas, propagate

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("REGISTRATION_LABEL_PYTHON")
OPTIONS: dict[str, Any] = {"io_steps": 20, "levels": [2, 1], "device": "cpu"}
pytestmark = pytest.mark.skipif(
    PYTHON is None, reason="REGISTRATION_LABEL_PYTHON names no interpreter with scripts/monailabel/requirements.txt"
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, a and b labelled."""
    folder = tmp_path_factory.mktemp("label")
    made = generate_shapes3d(folder / "made", 4, size=(32, 32, 32), validation=0, test=2, progress=False)
    studies = folder / "studies"
    (studies / "labels" / "final").mkdir(parents=True)
    images, labels = (sorted(made.rglob(f"{kind}*/*.nii.gz")) for kind in ("images", "labels"))
    for name, image, label in zip("abc", images, labels, strict=False):
        shutil.copy(image, studies / f"{name}.nii.gz")
        if name != "c":
            shutil.copy(label, studies / "labels" / "final" / f"{name}.nii.gz")
    return studies


@pytest.fixture(scope="module")
def server(studies: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    conf = {"bundle": "instance_any", "options": json.dumps(OPTIONS), "python": sys.executable}
    words = [word for name, value in conf.items() for word in ("--conf", name, value)]
    assert PYTHON is not None
    command = [PYTHON, "-W", "ignore", "-m", "monailabel.main", "start_server", "--app", "scripts/monailabel"]
    environment = {**os.environ, "PYTHONPATH": "scripts/monailabel/cpu"}
    environment["PATH"] = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
    # The server changes names in the folder of the studies and writes its log beside it.
    process = subprocess.Popen(
        [*command, "--studies", str(studies), *words, "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/info/")
                break
            except OSError:
                assert process.poll() is None, "the server has ended"
                time.sleep(1)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def ask(address: str, path: str, **params: Any) -> tuple[int, bytes]:
    """Status and answer of a request with a form of one field, ``params``."""
    lines = ["--x", 'Content-Disposition: form-data; name="params"', "", json.dumps(params), "--x--", ""]
    request = urllib.request.Request(f"{address}/{path}", "\r\n".join(lines).encode())
    request.add_header("Content-Type", "multipart/form-data; boundary=x")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def image_of(content: bytes, folder: Path) -> Any:
    path = folder / "answer.nii.gz"
    path.write_bytes(content)
    return nibabel.load(path)


def test_labels_are_those_of_the_python_interface(server: str, studies: Path, tmp_path: Path) -> None:
    status, content = ask(server, "infer/propagate?image=c&output=image", result_extension=".nii.gz", atlases=2)
    assert status == 200
    found = image_of(content, tmp_path)
    bundle = load_bundle("instance_any", **OPTIONS)
    labels = studies / "labels" / "final"
    atlases = [Atlas(name, studies / f"{name}.nii.gz", labels / f"{name}.nii.gz") for name in "ab"]
    expected = propagate(bundle, atlases, studies / "c.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected.label)
    np.testing.assert_array_equal(found.affine, nibabel.load(studies / "c.nii.gz").affine)
    status, content = ask(server, "infer/propagate?image=c&output=json", atlases=2)
    figures = json.loads(content)
    # Answers have four digits.
    assert figures["agreement"] == pytest.approx(expected.agreement, abs=1e-4)
    assert {*figures["similarities"]} == {"a", "b"} and figures["latencies"]["total"] > 0


def test_two_scans_are_registered(server: str, studies: Path, tmp_path: Path) -> None:
    question = "infer/register?image=c&output=image"
    status, content = ask(server, question, moving="a", result="transform")
    assert status == 200
    (tmp_path / "t.h5").write_bytes(content)
    expected = load_bundle("instance_any", **OPTIONS).register(studies / "a.nii.gz", studies / "c.nii.gz")
    expected.transform.save(tmp_path / "expected.h5")
    point = torch.tensor([[14.0, 15.0, 16.0]])
    here, there = (read_transform(tmp_path / name).points(point) for name in ("t.h5", "expected.h5"))
    np.testing.assert_array_equal(here, there)
    status, content = ask(server, question, moving="a", result="warped")
    np.testing.assert_array_equal(np.asarray(image_of(content, tmp_path).dataobj), expected.warped.array)


def test_the_next_scan_and_how_far_the_atlases_agree(server: str) -> None:
    request = urllib.request.Request(f"{server}/activelearning/least_similar", b"{}")
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert json.loads(answer.read())["id"] == "c"


@pytest.mark.parametrize(
    ("path", "params", "status", "sentence"),
    [
        ("infer/propagate?image=nobody&output=image", {}, 404, "There is no scan nobody in the store"),
        ("infer/register?image=c&output=image", {}, 400, "register needs moving, the id of the stored scan"),
        ("infer/register?image=c&output=image", {"moving": "nobody"}, 404, "There is no scan nobody"),
        ("infer/register?image=c&output=image", {"moving": "a", "result": "seg"}, 400, "result is 'seg'; it is one"),
        ("infer/propagate?image=c&output=image", {"atlases": ["c"]}, 400, "There is no labelled scan c"),
        ("infer/propagate?image=c&output=image", {"atlases": 0}, 400, "atlases is 0: give a number from 1 on"),
        ("infer/nothing?image=c&output=image", {}, 404, "There is no model 'nothing' available"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    server: str, path: str, params: dict[str, Any], status: int, sentence: str
) -> None:
    found, content = ask(server, path, **params)
    assert found == status and sentence in json.loads(content)["detail"]


def test_an_app_without_a_bundle_ends_in_a_sentence(studies: Path) -> None:
    assert PYTHON is not None
    command = [PYTHON, "-W", "ignore", "-m", "monailabel.main", "start_server", "--app", "scripts/monailabel"]
    environment = {**os.environ, "PYTHONPATH": "scripts/monailabel/cpu"}
    done = subprocess.run(
        [*command, "--studies", str(studies), "--host", "127.0.0.1", "--port", "1"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1 and "ERROR: The app has no bundle: start it with --conf bundle NAME" in done.stderr

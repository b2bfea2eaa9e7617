# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at the command line ends in one line that names it, a non-zero exit, and nothing half-written."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from common.engine import save_atomically
from common.networks import EOIR

from .conftest import ROOT, TINY

Command = Callable[..., subprocess.CompletedProcess[str]]
BUNDLE = ROOT / "bundles" / "eoir_shapes3d"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_atomically(EOIR(start_channel=2).state_dict(), path)
    return path


@pytest.fixture
def broken(phantoms: Path, tmp_path: Path) -> Path:
    """A copy of the data whose files a test may spoil."""
    return Path(shutil.copytree(phantoms, tmp_path / "broken"))


def image(folder: Path, number: int = 1) -> Path:
    return folder / "imagesTr" / f"SHAPES_{number:04d}_0000.nii.gz"


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine: np.ndarray | None = None) -> None:
    file: Any = nibabel.load(path)
    values = change(file.get_fdata(dtype=np.float32))
    nibabel.save(nibabel.Nifti1Image(values, file.affine if affine is None else affine), path)


def with_nan(values: np.ndarray) -> np.ndarray:
    values[3, 3, 3] = np.nan
    return values


def no_json(folder: Path) -> None:
    (folder / "dataset.json").unlink()


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "readme.txt").write_text("no data here")


def unknown_labels(folder: Path) -> None:
    for label in (folder / "labelsTr").iterdir():
        rewrite(label, lambda v: v + 90)


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing file": (lambda f: image(f).unlink(), "SHAPES_0001_0000.nii.gz"),
    "no data list": (no_json, "broken"),
    "empty folder": (emptied, "broken"),
    "wrong shape": (lambda f: rewrite(image(f), lambda v: v[:-4]), "shape"),
    "wrong dimension": (lambda f: rewrite(image(f), lambda v: np.stack([v, v], -1)), "SHAPES_0001_0000.nii.gz"),
    "NaN": (lambda f: rewrite(image(f), with_nan), "NaN"),
    "constant": (lambda f: rewrite(image(f), np.zeros_like), "constant"),
    "labels of another grid": (
        lambda f: rewrite(f / "labelsTr" / "SHAPES_0001_0000.nii.gz", lambda v: v, affine=np.diag([2.0, 2, 2, 1])),
        "labelsTr",
    ),
    "unknown label": (lambda f: rewrite(f / "labelsTr" / "SHAPES_0001_0000.nii.gz", lambda v: v + 90), "value 9"),
    "labels that all are unknown": (unknown_labels, "SHAPES_0001"),
    "corrupt NIfTI": (lambda f: image(f).write_bytes(image(f).read_bytes()[:500]), "SHAPES_0001_0000.nii.gz"),
}


def expect_one_line(result: subprocess.CompletedProcess[str], message: str) -> None:
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    assert len(errors) == 1, result.stderr[-2000:]
    assert message in errors[0], errors[0]
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_data(case: str, broken: Path, tmp_path: Path, command_line: Command) -> None:
    spoil, message = SPOILED[case]
    spoil(broken)
    output = ["--output_dir", str(tmp_path / "out"), "--ckpt_path", str(tmp_path / "model.pt")]
    train = ["run", "--config_file", "configs/train.json", "--dataset_dir", str(broken), "--max_epochs", "1"]
    result = command_line(*train, *output, *TINY, cwd=BUNDLE)
    expect_one_line(result, message)
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "out" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lrr", "3"], "no option --lrr"),
        (["--spacing", "false"], "write False"),
        (["--spacing", "[1,1]"], "three voxel sizes"),
        (["--moving_label", "c.nii.gz"], "without its image"),
        (["--network_def#start_chanel", "4"], "start_channel"),
        (["--ckpt_path", "nowhere.pt"], "train first"),
        (["--network_def#start_channel", "4"], "does not fit the network"),
        (["--fixed", "a.nii.gz"], "--moving"),
        (["--moving", "b.nii.gz", "--fixed", "a.nii.gz"], "b.nii.gz does not exist"),
        (["--output_dir", "configs/metadata.json/below"], "Cannot write to the folder"),
        (["--bundle_root", "configs"], "not the folder of a bundle"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_bad_options(
    options: list[str], message: str, weights: Path, phantoms: Path, tmp_path: Path, command_line: Command
) -> None:
    given = {"--dataset_dir": str(phantoms), "--ckpt_path": str(weights), "--output_dir": str(tmp_path / "out")}
    given["--network_def#start_channel"] = "2"
    given |= dict(zip(options[::2], options[1::2], strict=True))
    pairs = [text for pair in given.items() for text in pair]
    result = command_line("run", "--config_file", "configs/inference.json", *pairs, cwd=BUNDLE)
    expect_one_line(result, message)
    assert not list((tmp_path / "out").glob("*.nii.gz"))


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_pickle_with_code_does_not_run(tmp_path: Path, command_line: Command) -> None:
    for name in ("p_0001.pkl", "p_0002.pkl"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_bytes(pickle.dumps((Malicious(), Malicious())))
    bundle = ROOT / "bundles" / "eoir_oasis"
    output = ["--output_dir", str(tmp_path / "out"), "--ckpt_path", str(tmp_path / "model.pt"), *TINY]
    train = ["run", "--config_file", str(bundle / "configs" / "train.json"), "--bundle_root", str(bundle)]
    result = command_line(*train, "--dataset_dir", str(tmp_path / "data"), *output, cwd=tmp_path)
    assert result.returncode != 0 and not (tmp_path / "executed").exists()
    assert "Traceback" not in result.stderr


def test_results_are_not_overwritten_unasked(
    weights: Path, phantoms: Path, tmp_path: Path, command_line: Command
) -> None:
    options = ["--dataset_dir", str(phantoms), "--ckpt_path", str(weights), "--network_def#start_channel", "2"]
    infer = ["run", "--config_file", "configs/inference.json", *options, "--output_dir", str(tmp_path)]
    assert command_line(*infer, cwd=BUNDLE).returncode == 0
    first = sorted(tmp_path.glob("*_ddf.nii.gz"))[0]
    before = first.stat().st_mtime_ns
    expect_one_line(command_line(*infer, cwd=BUNDLE), "--overwrite true")
    assert first.stat().st_mtime_ns == before
    assert command_line(*infer, "--overwrite", "true", cwd=BUNDLE).returncode == 0
    assert first.stat().st_mtime_ns > before


def test_finished_training_has_nothing_to_resume(phantoms: Path, tmp_path: Path, command_line: Command) -> None:
    output = ["--output_dir", str(tmp_path), "--ckpt_path", str(tmp_path / "model.pt"), "--pairs_per_epoch", "1"]
    train = ["run", "--config_file", "configs/train.json", "--dataset_dir", str(phantoms), "--max_epochs", "1", *output]
    assert command_line(*train, *TINY, cwd=BUNDLE).returncode == 0
    expect_one_line(command_line(*train, *TINY, cwd=BUNDLE), "continue their training with --resume true")
    expect_one_line(command_line(*train, *TINY, "--resume", "true", cwd=BUNDLE), "nothing to resume")

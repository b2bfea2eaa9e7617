# SPDX-License-Identifier: Apache-2.0
"""Every recipe trains, evaluates and infers; one bundle from the command line, as a person types it."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.data.shapes3d import generate_shapes3d
from common.spatial import warp_within

from .conftest import ROOT, RUN, TINY, environment, few_shapes, phantom_options, run_workflow, tiny

Command = Callable[..., subprocess.CompletedProcess[str]]


PATTERN = ROOT / "bundles" / "eoir_shapes3d"


def check_training(folder: Path, model: Path) -> None:
    assert model.is_file() and (folder / "checkpoint.pt").is_file()
    assert list((folder / "tensorboard").glob("events*"))
    rows = list(csv.DictReader((folder / "history.csv").open()))
    assert len(rows) == 1 and {"val_dice", "val_dice_before"} <= set(rows[0])


def check_evaluation(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["pairs"] == 2 and summary["metrics"]["dice"]["before"] > 0
    assert {"seconds", "peak_memory_gb", "fold_fraction", "hd95"} <= set(summary["metrics"])
    cases = list(csv.DictReader((folder / "cases.csv").open()))
    assert len(cases) == 2 and {"dice", "dice_before", "hd95_before", "seconds"} <= set(cases[0])
    assert len(list(csv.DictReader((folder / "labels.csv").open()))) >= 2 * 8
    assert "<html" in (folder / "report.html").read_text()


def check_registration(folder: Path, moving: Path, fixed: Path) -> None:
    name = f"{moving.name.split('.')[0]}_to_{fixed.name.split('.')[0]}"
    warped, ddf = (nibabel.load(folder / f"{name}_{kind}.nii.gz") for kind in ("warped", "ddf"))
    assert np.allclose(warped.affine, nibabel.load(fixed).affine) and ddf.shape == (*warped.shape, 3)
    source = torch.from_numpy(nibabel.load(moving).get_fdata(dtype=np.float32))[None, None]
    field = torch.from_numpy(ddf.get_fdata(dtype=np.float32)).movedim(-1, 0)[None]
    again = warp_within(source, field, outside=float(source.min()))[0, 0]
    # Values in [0, 1], sampled twice in float32.
    np.testing.assert_allclose(again.numpy(), warped.get_fdata(dtype=np.float32), atol=1e-5)


def scans(phantoms: Path) -> tuple[Path, Path]:
    moving, fixed = (phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz" for number in ("0002", "0001"))
    return moving, fixed


@pytest.mark.parametrize("bundle", RUN, ids=lambda path: path.name)
def test_train_evaluate_infer(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    options: dict[str, Any] = {"ckpt_path": str(model), **tiny(bundle)}
    data = phantom_options(bundle, phantoms)
    folders = {name: tmp_path / name for name in ("train", "evaluate", "infer")}

    short: dict[str, Any] = {"max_epochs": 1, "val_interval": 1, "pairs_per_epoch": 2, "batch_size": 1}
    short |= few_shapes(bundle)
    run_workflow(bundle, "train", output_dir=str(folders["train"]), **options, **data, **short)
    check_training(folders["train"], model)

    run_workflow(bundle, "evaluate", output_dir=str(folders["evaluate"]), **options, **data)
    check_evaluation(folders["evaluate"])

    moving, fixed = scans(phantoms)
    files = {**phantom_options(bundle, phantoms, "infer"), "moving": str(moving), "fixed": str(fixed)}
    run_workflow(bundle, "inference", output_dir=str(folders["infer"]), **options, **files)
    check_registration(folders["infer"], moving, fixed)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flat") / "data"
    return generate_shapes3d(folder, num_subjects=8, size=(40, 48), validation=2, test=2, progress=False)


# One of each recipe; mirrored pairs, masks, a pyramid of labels, images of a size; those that are for images.
FLAT: dict[str, dict[str, Any]] = {
    "eoir_shapes3d": {},
    "eoir_oasis": {},
    "vfa_oasis": {},
    "eoir_acdc": {"spacing": None, "spatial_size": [32, 40], "network_def#variant": "plain"},
    "nephi_shapes2d": {},
}


@pytest.mark.parametrize("name", FLAT)
def test_one_option_makes_it_two_dimensional(name: str, flat: Path, tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / name
    data = {"dataset_dir": str(flat), "reader": "datalist", "labels": list(range(1, 9)), **FLAT[name]}
    options = {**tiny(bundle), **data, "ckpt_path": str(tmp_path / "model.pt"), "network_def#spatial_dims": 2}
    short = {"max_epochs": 1, "val_interval": 1, "pairs_per_epoch": 2, "batch_size": 1}
    run_workflow(bundle, "train", output_dir=str(tmp_path / "train"), **options, **short)
    check_training(tmp_path / "train", tmp_path / "model.pt")
    run_workflow(bundle, "evaluate", output_dir=str(tmp_path / "evaluate"), **options)
    check_evaluation(tmp_path / "evaluate")


def test_commands_as_people_type_them(phantoms: Path, tmp_path: Path, command_line: Command) -> None:
    model = tmp_path / "model.pt"
    data = ["--dataset_dir", str(phantoms), "--ckpt_path", str(model)]
    width = TINY[:2]
    output = {name: tmp_path / name for name in ("train", "evaluate", "infer")}

    # From the bundle's folder, in the spelling of the zoo.
    train = ["run", "train", "--config_file", "configs/train.json", "--max_epochs", "1", "--val_interval", "1"]
    train += ["--pairs_per_epoch", "2"]
    result = command_line(*train, *data, *TINY, "--output_dir", str(output["train"]), cwd=PATTERN)
    assert result.returncode == 0, result.stderr[-3000:]
    check_training(output["train"], model)

    # From the root of the repository, in the other spelling.
    evaluate = ["run", "--config_file", f"bundles/{PATTERN.name}/configs/evaluate.json"]
    options = [*data, *width, "--bundle_root", f"bundles/{PATTERN.name}", "--output_dir", str(output["evaluate"])]
    result = command_line(*evaluate, *options, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    check_evaluation(output["evaluate"])

    # From a folder that has nothing to do with it.
    moving, fixed = scans(phantoms)
    infer = [
        "run",
        "infer",
        "--config_file",
        str(PATTERN / "configs" / "inference.json"),
        "--bundle_root",
        str(PATTERN),
    ]
    files = ["--moving", str(moving), "--fixed", str(fixed), "--ckpt_path", str(model)]
    result = command_line(*infer, *files, *width, "--output_dir", str(output["infer"]), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    check_registration(output["infer"], moving, fixed)

    # Its transform takes other images along: here the same one again.
    name = output["infer"] / f"{moving.name.split('.')[0]}_to_{fixed.name.split('.')[0]}"
    again = tmp_path / "again.nii.gz"
    apply = ["--moving", str(moving), "--reference", str(fixed), "--transform", f"{name}_transform.h5"]
    importlib.import_module("scripts.apply").main([*apply, "--output", str(again)])
    warped, repeated = (nibabel.load(path).get_fdata() for path in (f"{name}_warped.nii.gz", again))
    # Values in [0, 1]; the transform went through millimetres in single precision.
    np.testing.assert_allclose(repeated, warped, atol=1e-4)


def test_the_example_of_the_readme_trains_with_default_options(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(\{\"training\".*?)```", text, re.DOTALL)
    folder = tmp_path / "data"
    for number, path in enumerate(dict.fromkeys(re.findall(r"imagesTr/(\w)\.nii\.gz", example)), start=1):
        for kind in ("imagesTr", "labelsTr"):
            source = phantoms / kind / f"SHAPES_{number:04d}_0000.nii.gz"
            (folder / kind).mkdir(parents=True, exist_ok=True)
            if f"{kind}/{path}.nii.gz" in example:
                (folder / kind / f"{path}.nii.gz").write_bytes(source.read_bytes())
    (folder / "dataset.json").write_text(example)
    bundle = ROOT / "bundles" / "eoir_oasis"
    data = {"reader": "datalist", "dataset_dir": str(folder), "ckpt_path": str(tmp_path / "model.pt")}
    run_workflow(bundle, "train", output_dir=str(tmp_path / "train"), max_epochs=1, **data, **tiny(bundle))
    assert "Labels for 0 of 2 pairs: 1 of 2 scans have none, such as" in caplog.text and "b.nii.gz" in caplog.text
    (row,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    assert "lncc" in row and "dice" not in row and float(row["val_dice"]) > 0


def test_two_processes_train_as_one_with_twice_the_batch(phantoms: Path, tmp_path: Path) -> None:
    common_options = ["--dataset_dir", str(phantoms), "--max_epochs", "3", "--val_interval", "3", *TINY]

    def options(name: str) -> list[str]:
        return [*common_options, "--output_dir", str(tmp_path / name), "--ckpt_path", str(tmp_path / name / "model.pt")]

    one = [
        "python",
        "-W",
        "ignore",
        "-m",
        "monai.bundle",
        "run",
        "--config_file",
        "configs/train.json",
        "--batch_size",
        "2",
    ]
    two = ["torchrun", "--nproc_per_node=2", "--master_port=29531", "-m", "monai.bundle", "run"]
    two += ["--config_file", "['configs/train.json','configs/multi_gpu_train.json']"]
    path = {"PATH": f"{Path(torch.__file__).parents[4] / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    for command, name in ((one, "one"), (two, "two")):
        subprocess.run(
            [*command, *options(name)], cwd=PATTERN, env={**environment(), **path}, check=True, capture_output=True
        )
    rows = [list(csv.DictReader((tmp_path / name / "history.csv").open())) for name in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        for term in ("lncc", "smoothness"):
            assert float(single[term]) == pytest.approx(float(double[term]), rel=1e-4)

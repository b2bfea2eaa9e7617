# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and infer from the command line, as a person types them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.spatial import warp_within

from .conftest import BUNDLES, ROOT, TINY, environment

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_train_evaluate_infer(bundle: Path, phantoms: Path, tmp_path: Path, command_line: Command) -> None:
    model = tmp_path / "model.pt"
    data = ["--dataset_dir", str(phantoms), "--ckpt_path", str(model)]
    if bundle.name != "eoir_shapes3d":
        data += ["--reader", "datalist"]
    if bundle.name == "eoir_acdc":
        # The phantoms have other labels and voxels than hearts.
        data += ["--labels", str(list(range(1, 9))), "--spacing", "$None", "--spatial_size", "[32,32,32]"]
    width = TINY[:2]
    output = {name: tmp_path / name for name in ("train", "evaluate", "infer")}

    # From the bundle's folder, in the spelling of the zoo.
    train = ["run", "train", "--config_file", "configs/train.json", "--max_epochs", "1", "--val_interval", "1"]
    train += ["--pairs_per_epoch", "2"]
    result = command_line(*train, *data, *TINY, "--output_dir", str(output["train"]), cwd=bundle)
    assert result.returncode == 0, result.stderr[-3000:]
    assert model.is_file() and (output["train"] / "checkpoint.pt").is_file()
    assert list((output["train"] / "tensorboard").glob("events*"))
    rows = list(csv.DictReader((output["train"] / "history.csv").open()))
    assert (
        len(rows) == 1
        and {"smoothness", "val_dice", "val_dice_before"} <= set(rows[0])
        and {"lncc", "mse"} & set(rows[0])
    )

    # From the root of the repository, in the other spelling.
    evaluate = ["run", "--config_file", f"bundles/{bundle.name}/configs/evaluate.json"]
    options = [*data, *width, "--bundle_root", f"bundles/{bundle.name}", "--output_dir", str(output["evaluate"])]
    result = command_line(*evaluate, *options, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    summary = json.loads((output["evaluate"] / "summary.json").read_text())
    assert summary["pairs"] == 2 and summary["metrics"]["dice"]["before"] > 0
    assert {"seconds", "peak_memory_gb", "fold_fraction", "hd95"} <= set(summary["metrics"])
    cases = list(csv.DictReader((output["evaluate"] / "cases.csv").open()))
    assert len(cases) == 2 and {"dice", "dice_before", "hd95_before", "seconds"} <= set(cases[0])
    assert len(list(csv.DictReader((output["evaluate"] / "labels.csv").open()))) >= 2 * 8
    assert "<html" in (output["evaluate"] / "report.html").read_text()

    # From a folder that has nothing to do with it.
    fixed, moving = (phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz" for number in ("0001", "0002"))
    infer = ["run", "infer", "--config_file", str(bundle / "configs" / "inference.json"), "--bundle_root", str(bundle)]
    files = ["--fixed", str(fixed), "--moving", str(moving), "--ckpt_path", str(model)]
    result = command_line(*infer, *files, *width, "--output_dir", str(output["infer"]), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    warped_file, ddf_file = (
        output["infer"] / f"SHAPES_0002_0000_to_SHAPES_0001_0000_{n}.nii.gz" for n in ("warped", "ddf")
    )
    warped, ddf = nibabel.load(warped_file), nibabel.load(ddf_file)
    assert np.allclose(warped.affine, nibabel.load(fixed).affine) and ddf.shape == (*warped.shape, 3)
    source = torch.from_numpy(nibabel.load(moving).get_fdata(dtype=np.float32))[None, None]
    field = torch.from_numpy(ddf.get_fdata(dtype=np.float32)).movedim(-1, 0)[None]
    again = warp_within(source, field, outside=float(source.min()))[0, 0]
    # Values in [0, 1], sampled twice in float32.
    np.testing.assert_allclose(again.numpy(), warped.get_fdata(dtype=np.float32), atol=1e-5)


def test_two_processes_train_as_one_with_twice_the_batch(phantoms: Path, tmp_path: Path) -> None:
    bundle = ROOT / "bundles" / "eoir_shapes3d"
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
            [*command, *options(name)], cwd=bundle, env={**environment(), **path}, check=True, capture_output=True
        )
    rows = [list(csv.DictReader((tmp_path / name / "history.csv").open())) for name in ("one", "two")]
    for single, double in zip(*rows, strict=True):
        for term in ("lncc", "smoothness"):
            assert float(single[term]) == pytest.approx(float(double[term]), rel=1e-4)

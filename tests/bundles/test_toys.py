# SPDX-License-Identifier: Apache-2.0
"""Methods that the engine does not know train, are evaluated and register through the workflows of a bundle."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import pytest

from .conftest import ROOT, run_workflow

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"
TOYS = "tests.bundles.toys"


def term(loss: str, on: list[str]) -> dict[str, Any]:
    target = loss if "." in loss else f"{TOYS}.{loss}"
    return {"_target_": "common.losses.Term", "loss": {"_target_": target}, "on": on}


SIMILARITY = term("torch.nn.MSELoss", ["warped", "fixed"])
BACK = term("torch.nn.MSELoss", ["warped_back", "moving"])
SAMPLED = term("SampledSimilarity", ["map", "moving", "fixed", "draw"])
PRIOR = term("KullbackLeibler", ["velocity", "log_sigma"])
SYNTHESIS = {
    "preprocessing::transforms": [{"_target_": "common.data.LoadSubjectd", "keys": "label"}],
    "train::trainer::prepare_batch::synthesis": {"_target_": f"{TOYS}.paint", "_mode_": "callable"},
    "validate::preprocessing": {"_target_": "common.data.LoadSubjectd"},
}


@pytest.mark.parametrize(
    ("network", "terms", "training"),
    [
        ("Inverse", {"there": SIMILARITY, "back": BACK}, {}),
        ("PointMap", {"sampled": SAMPLED}, {}),
        ("Probabilistic", {"mse": SIMILARITY, "prior": PRIOR}, {}),
        ("Inverse", {"mse": SIMILARITY}, SYNTHESIS),
    ],
    ids=["both directions", "map of points", "log sigma", "synthesis on the device"],
)
def test_toy_trains_is_evaluated_and_registers(
    network: str, terms: dict[str, Any], training: dict[str, Any], phantoms: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "network_def": {"_target_": f"{TOYS}.{network}", "spatial_dims": 3},
        "dataset_dir": str(phantoms),
        "ckpt_path": str(tmp_path / "model.pt"),
    }
    loss = {"_target_": "common.losses.RegistrationLoss", "terms": terms}
    steps = {"max_epochs": 1, "pairs_per_epoch": 2, "loss": loss, **training}
    run_workflow(BUNDLE, "train", output_dir=str(tmp_path / "train"), **options, **steps)
    (row,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    assert set(terms) <= set(row) and float(row["val_dice"]) > 0

    run_workflow(BUNDLE, "evaluate", output_dir=str(tmp_path / "evaluate"), hd95=None, **options)
    metrics = json.loads((tmp_path / "evaluate" / "summary.json").read_text())["metrics"]
    assert ("inverse_consistency" in metrics) == (network == "Inverse")

    fixed, moving = (str(phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz") for number in ("0001", "0002"))
    run_workflow(BUNDLE, "inference", output_dir=str(tmp_path / "infer"), fixed=fixed, moving=moving, **options)
    (pair,) = json.loads((tmp_path / "infer" / "provenance.json").read_text())["pairs"].values()
    assert pair["inverse_from"] == ("network" if network == "Inverse" else "solver")
    written = {
        path.name.removeprefix("SHAPES_0002_0000_to_SHAPES_0001_0000_") for path in (tmp_path / "infer").iterdir()
    }
    assert ("speed_map.nii.gz" in written) == (network == "Inverse") and "inverse_map.nii.gz" not in written
    assert ("inverse_ddf.nii.gz" in written) == ("inverse_consistency" in pair) == (network == "Inverse")
    if network == "Inverse":
        speed = next((tmp_path / "infer").glob("*speed_map.nii.gz"))
        assert nibabel.load(speed).shape == nibabel.load(fixed).shape

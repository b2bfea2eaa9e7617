# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph is trained to say how sure it is, and inference writes it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import torch

from .conftest import ROOT, run_workflow, tiny

BUNDLE = ROOT / "bundles" / "voxelmorph_oasis"
NETWORK = {"network_def#int_steps": 7, "network_def#padding_mode": "border", "network_def#probabilistic": True}


def test_its_weights_hold_a_spread_that_inference_writes(phantoms: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = {"dataset_dir": str(phantoms), "reader": "datalist", "labels": [1, 2], "pairs_per_epoch": 1}
    places = {"output_dir": str(tmp_path / "train"), "ckpt_path": str(tmp_path / "model.pt"), "max_epochs": 1}
    run_workflow(BUNDLE, "train+probabilistic", **data, **places, **tiny(BUNDLE))
    (row,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    # Of a fresh network: half of three times ten, the logarithm of a variance that is small beside the prior's.
    assert abs(float(row["kl"]) - 15) < 0.1 and float(row["mse"]) > 0 and "lncc" not in row
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    weights["log_variance.bias"] += 6
    torch.save(weights, tmp_path / "model.pt")

    scans = {
        name: str(phantoms / "imagesTr" / f"SHAPES_000{n}_0000.nii.gz") for name, n in (("moving", 7), ("fixed", 8))
    }
    places = {"output_dir": str(tmp_path / "out"), "ckpt_path": str(tmp_path / "model.pt")}
    run_workflow(BUNDLE, "inference", **scans, **places, **tiny(BUNDLE), **NETWORK)
    (written,) = (tmp_path / "out").glob("*_uncertainty.nii.gz")
    uncertainty: Any = nibabel.load(written)
    assert uncertainty.shape == nibabel.load(scans["fixed"]).shape
    assert 0.01 < uncertainty.get_fdata().mean() < 1

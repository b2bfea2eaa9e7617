# SPDX-License-Identifier: Apache-2.0
"""The bundle of lungs on a folder like that of Learn2Reg, of its own units, masks and landmarks."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from .conftest import ROOT, run_workflow, tiny

BUNDLE = ROOT / "bundles" / "nephi_lungct"
AFFINE = np.diag([-3.0, -3, 3, 1])
SIZE = 24
SHIFT = 2
"""Voxels of the scans by which the lungs of all people move along the last axis."""


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs to train with, one to validate: a lung with a bright vessel, its mask, and two landmarks."""
    folder = tmp_path_factory.mktemp("lungs") / "data"
    for kind in ("images", "masks", "landmarks"):
        (folder / f"{kind}Tr").mkdir(parents=True)
    places = np.stack(np.meshgrid(*[np.arange(SIZE)] * 3, indexing="ij"))
    for number in (1, 4, 5):
        for phase in (0, 1):
            centre = np.array([12, 11, 9 + SHIFT * phase])[:, None, None, None]
            mask = ((places - centre) ** 2).sum(0) < 6**2
            vessel = ((places - centre)[:2] ** 2).sum(0) < 2**2
            noise = 20 * np.random.default_rng(number).standard_normal(mask.shape)
            hounsfield = np.where(mask, np.where(vessel, 30, -800), 40) + noise
            name = f"LungCT_{number:04d}_{phase:04d}"
            for kind, values in (("images", hounsfield.astype(np.int16)), ("masks", mask.astype(np.uint8))):
                nibabel.save(nibabel.Nifti1Image(values, AFFINE), folder / f"{kind}Tr" / f"{name}.nii.gz")
            points = centre[:, 0, 0, 0] + [[0, 1, 2], [3, 0, -2]]
            np.savetxt(folder / "landmarksTr" / f"{name}.csv", points, delimiter=",")
    return folder


def test_lungs_are_trained_and_measured_by_their_landmarks(lungs: Path, tmp_path: Path) -> None:
    grid = {"spacing": [4.0, 4.0, 4.0], "spatial_size": [20, 18, 20], "network_def#size": [20, 18, 20]}
    options: dict[str, Any] = {**tiny(BUNDLE), **grid, "dataset_dir": str(lungs), "ckpt_path": str(tmp_path / "m.pt")}
    steps = {"max_epochs": 2, "val_interval": 1, "batch_size": 2, "num_workers": 0}
    run_workflow(BUNDLE, "train", output_dir=str(tmp_path / "train"), **options, **steps)
    rows = list(csv.DictReader((tmp_path / "train" / "history.csv").open()))
    # In millimetres, whatever the voxels of the grid are.
    assert [float(row["val_tre_before"]) for row in rows] == pytest.approx([SHIFT * 3] * 2, rel=1e-4)
    assert {"ncc", "consistency", "prior", "val_dice", "val_ndv", "val_fold_fraction"} <= set(rows[0])
    content = torch.load(tmp_path / "train" / "checkpoint.pt", weights_only=True)
    assert content["best_metric"] == pytest.approx(min(float(row["val_tre"]) for row in rows), rel=1e-6)

    run_workflow(BUNDLE, "evaluate", output_dir=str(tmp_path / "evaluate"), **options)
    (case,) = csv.DictReader((tmp_path / "evaluate" / "cases.csv").open())
    assert (case["moving_id"], case["fixed_id"]) == ("LungCT_0001_0001", "LungCT_0001_0000")
    assert float(case["tre"]) == pytest.approx(content["best_metric"], rel=1e-4)
    summary = json.loads((tmp_path / "evaluate" / "summary.json").read_text())["metrics"]
    assert {"tre", "dice", "ndv", "fold_fraction"} <= set(summary)
    assert summary["tre"]["before"] == pytest.approx(6, rel=1e-4)
    assert "TRE" in (tmp_path / "evaluate" / "report.html").read_text()

# SPDX-License-Identifier: Apache-2.0
"""SITReg's second training, which goes on from the first, as a person types it."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import ROOT, run_workflow, tiny

BUNDLE = ROOT / "bundles" / "sitreg_lumir"


def test_it_goes_on_from_the_first_one_round_three_subjects(
    phantoms: Path, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    network = {**tiny(BUNDLE), "network_def#solver": "default"}
    options: dict[str, Any] = {"dataset_dir": str(phantoms), "reader": "datalist", "max_epochs": 1, **network}
    first, second = tmp_path / "first", tmp_path / "second"
    places = {"output_dir": str(first), "ckpt_path": str(first / "model.pt")}
    run_workflow(BUNDLE, "train", **options, **places, pairs_per_epoch=2, batch_size=2)

    options |= {"pairs_per_epoch": 6, "output_dir": second, "ckpt_path": second / "model.pt"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = ["run", "--config_file", "['configs/train.json','configs/v2.json']", *words]
    missing = command_line(*command, cwd=BUNDLE)
    assert "ERROR: --start_from is './outputs/train/checkpoint.pt'; give a file that exists" in missing.stderr
    result = command_line(*command, "--start_from", str(first / "checkpoint.pt"), cwd=BUNDLE)
    assert result.returncode == 0, result.stderr[-3000:]
    said = result.stdout + result.stderr
    assert "Starting with weights and moments of" in said and "learning rate 0.0001" in said

    (row,) = csv.DictReader((second / "history.csv").open())
    assert float(row["consistency"]) > 0 and float(row["folding"]) >= 0
    saved = torch.load(second / "checkpoint.pt", weights_only=True)
    assert saved["optimizer"]["param_groups"][0]["lr"] == 1e-4
    # One step of the first training, two of this one.
    assert saved["iteration"] == 2 and {state["step"].item() for state in saved["optimizer"]["state"].values()} == {3}


def test_it_differs_from_the_first_one_as_published() -> None:
    config = json.loads((BUNDLE / "configs" / "v2.json").read_text())
    assert config["learning_rate"] == 1e-4 and config["batch_size"] == 3
    # 15 epochs of 2000 circles.
    assert config["pairs_per_epoch"] == 2000 * 3 and config["max_epochs"] == 45 - 30
    weights = {name.rpartition("::")[2]: term["weight"] for name, term in config.items() if "terms" in name}
    # Half of 1e-5 for either direction; the consistency looks at both.
    assert weights == pytest.approx({"folding": 0.5e-5, "folding_back": 0.5e-5, "consistency": 40})

# SPDX-License-Identifier: Apache-2.0
"""A network without a way back is trained with GradICON's penalty, as a second configuration adds it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from .conftest import ROOT, run_workflow, tiny

BUNDLE = ROOT / "bundles" / "eoir_oasis"


def test_eoir_is_trained_with_it_on_all_levels(phantoms: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"dataset_dir": str(phantoms), "reader": "datalist", "labels": [1, 2], **tiny(BUNDLE)}
    options |= {"max_epochs": 1, "pairs_per_epoch": 1}
    places = {"output_dir": str(tmp_path / "train"), "ckpt_path": str(tmp_path / "model.pt")}
    run_workflow(BUNDLE, "train+gradicon", **options, **places)
    (row,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    assert float(row["consistency"]) > 0

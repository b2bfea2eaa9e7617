# SPDX-License-Identifier: Apache-2.0
"""A network sees its own voxel size, and the optimisation on the pair goes on with finer ones."""

from __future__ import annotations

import json
from pathlib import Path

from common.engine import save_atomically
from common.networks import EOIR

from .conftest import ROOT, run_workflow


def test_the_result_has_the_voxels_of_the_optimisation(phantoms: Path, tmp_path: Path) -> None:
    moving, fixed = (phantoms / "imagesTr" / f"SHAPES_{number}_0000.nii.gz" for number in ("0002", "0001"))
    weights = tmp_path / "model.pt"
    save_atomically(EOIR(variant="oasis", start_channel=2).state_dict(), weights)
    options = {"moving": str(moving), "fixed": str(fixed), "ckpt_path": str(weights), "output_dir": str(tmp_path)}
    grids = {"network_def#start_channel": 2, "spacing": [2, 2, 2], "io_spacing": [1, 1, 1.5]}
    run_workflow(ROOT / "bundles" / "eoir_oasis", "inference", **options, **grids, io_steps=3)
    (pair,) = json.loads((tmp_path / "provenance.json").read_text())["pairs"].values()
    assert pair["working_spacing"] == [1, 1, 1.5]
    assert pair["optimisation"]["after"] < pair["optimisation"]["before"]

# SPDX-License-Identifier: Apache-2.0
"""From a data list of PNG files to weights, pages, transforms and figures of two dimensions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from common.data.shapes3d import generate_shapes3d
from common.evaluation.field_evaluation import EvaluationRequest
from common.report.field_evaluation import report_fields

from .conftest import ROOT, run_workflow, tiny

PATTERN = ROOT / "bundles" / "eoir_shapes3d"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes of two dimensions whose files are PNG."""
    folder = tmp_path_factory.mktemp("pictures") / "data"
    generate_shapes3d(folder, num_subjects=6, size=(40, 48), validation=2, test=2, progress=False)
    for path in sorted(folder.glob("*sTr/*.nii.gz")):
        values = np.asarray(nibabel.load(path).dataobj)
        stretched = np.rint(values * 255) if "images" in path.parent.name else values
        Image.fromarray(stretched.astype(np.uint8).T).save(path.with_name(path.name.replace(".nii.gz", ".png")))
        path.unlink()
    listed = (folder / "dataset.json").read_text()
    (folder / "dataset.json").write_text(listed.replace(".nii.gz", ".png"))
    return folder


def test_png_from_training_to_figures(pictures: Path, tmp_path: Path) -> None:
    data = {"dataset_dir": str(pictures), "reader": "datalist"}
    options = {**tiny(PATTERN), "ckpt_path": str(tmp_path / "model.pt"), "network_def#spatial_dims": 2}
    short = {"max_epochs": 1, "val_interval": 1, "pairs_per_epoch": 2}
    run_workflow(PATTERN, "train", output_dir=str(tmp_path / "train"), **options, **data, **short)
    run_workflow(PATTERN, "evaluate", output_dir=str(tmp_path / "evaluate"), **options, **data)
    cases = list(csv.DictReader((tmp_path / "evaluate" / "cases.csv").open()))
    assert len(cases) == 2 and "data:image/png" in (tmp_path / "evaluate" / "report.html").read_text()

    fields = tmp_path / "fields"
    run_workflow(PATTERN, "inference", output_dir=str(fields), section="test", spacing=None, **options, **data)
    record = json.loads((fields / "provenance.json").read_text())["pairs"]
    assert len(record) == 2 and all((fields / f"{name}_warped.png").is_file() for name in record)

    request = EvaluationRequest(
        fields, pictures / "dataset.json", images=pictures / "imagesTr", labels=pictures / "labelsTr", section="test"
    )
    content = report_fields(request, tmp_path / "scored", workers=1)
    assert content["pairs"] == 2 and {"dice", "hd95", "ndv", "fold_fraction"} <= set(content["metrics"])
    for case in csv.DictReader((tmp_path / "scored" / "cases.csv").open()):
        entry = record[f"{case['moving_id']}_to_{case['fixed_id']}"]
        assert float(case["dice"]) == pytest.approx(entry["dice"]["registered"], abs=1e-6)

# SPDX-License-Identifier: Apache-2.0
"""A bundle's results of two DICOM series, in DICOM."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import torch

from common.api import load_bundle
from common.io.dicom_series import read_series
from common.io.transforms import read_transform
from tests.dicom_slices import write_series

from .conftest import ROOT


def test_the_object_of_a_pair_is_its_transform_and_its_labels_have_names(tmp_path: Path) -> None:
    index = np.indices((16, 15, 14))
    for side, centre in (("moving", 6), ("fixed", 8)):
        distance = ((index - np.array([centre, 7, 7])[:, None, None, None]) ** 2).sum(0)
        affine = np.diag([-1.5, 1.3, 2.0, 1.0])
        write_series(tmp_path / side, (1000 * np.exp(-distance / 20)).astype(np.int16), affine, f"1.2.{centre}")
    moving = read_series(tmp_path / "moving")
    label = nibabel.Nifti1Image((moving.voxels > 300).astype(np.int16) * 41, moving.affine)
    nibabel.save(label, tmp_path / "label.nii.gz")
    (tmp_path / "names.json").write_text(json.dumps({"41": "blob"}))
    bundle = load_bundle(ROOT / "bundles" / "instance_any", io_steps=2, levels=[1], similarity="mse")
    options = {"moving_label": tmp_path / "label.nii.gz", "label_names": str(tmp_path / "names.json")}
    result = bundle.register(tmp_path / "moving", tmp_path / "fixed", **options)
    reg, seg = result.save(tmp_path / "out", "reg,seg")
    points = torch.rand(20, 3, dtype=torch.float64) * torch.tensor([-20.0, 18.0, 25.0])
    moved = read_transform(reg).points(points)
    # Vectors are stored as float32, in millimetres.
    torch.testing.assert_close(moved, result.registration.transform.points(points), rtol=0, atol=1e-5)
    assert float((moved - points).abs().max()) > 0.01
    assert [item.SegmentLabel for item in pydicom.dcmread(seg).SegmentSequence] == ["blob"]

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import torch

from common.checks import InputError
from common.data.request import registration_request
from common.engine.pair_handler import PairKeeper
from common.engine.registration import Registration
from common.engine.registration_files import OUTPUTS, chosen_outputs, write_files
from common.engine.registration_folder import RegistrationFolder
from common.io.dicom_series import read_series
from common.io.transforms import read_transform
from tests.dicom_slices import STUDY, write_series

LAS = np.array([[-1.1, 0, 0, 5], [0, 1.3, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """A series of a patient, and one of another with another frame of reference."""
    values = np.random.default_rng(0).integers(0, 99, (7, 6, 5)).astype(np.int16)
    write_series(tmp_path / "fixed", values, LAS)
    others = {"StudyInstanceUID": "1.9", "FrameOfReferenceUID": "1.9.1"}
    write_series(tmp_path / "moving", values[::-1], LAS, "1.2.3.5", **others)
    return {side: str(tmp_path / side) for side in ("moving", "fixed")}


@pytest.fixture
def pair(folders: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {"aligned": {}, "alignment": torch.eye(4, dtype=torch.float64)}
    found["alignment"][:3, 3] = torch.tensor([1.1, 0.0, -2.5])
    for side, folder in folders.items():
        series = read_series(folder)
        found[f"{side}_scan"] = torch.from_numpy(series.voxels)[None]
        found[f"{side}_affine"] = torch.from_numpy(series.affine)
        found |= {f"{side}_id": side, f"path_{side}": folder}
    found["moving_scan_label"] = (found["moving_scan"] > 50).long() * 41
    found["ddf"] = torch.randn(3, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    return {**found, "affine": found["fixed_affine"]}


def test_seg_and_reg_hold_what_the_other_files_hold(pair: dict[str, Any], tmp_path: Path) -> None:
    result = Registration(pair)
    result.label_names = {41: "left putamen"}
    files = write_files(result, tmp_path / "a_to_b", chosen_outputs("seg,reg"))
    assert [path.name for path in files] == ["a_to_b_warped_label_seg.dcm", "a_to_b_transform_reg.dcm"]
    segmentation = highdicom.seg.segread(files[0])
    assert segmentation.SegmentSequence[0].SegmentLabel == "left putamen"
    assert result.warped_label is not None
    assert int(segmentation.pixel_array.sum()) == int((result.warped_label == 41).sum())
    points = torch.tensor(LAS[:3, :3]) @ torch.rand(3, 20, dtype=torch.float64).mul(4) + torch.tensor(LAS[:3, 3:])
    torch.testing.assert_close(
        # Vectors are stored as float32, in millimetres.
        read_transform(files[1]).points(points.T),
        result.transform.points(points.T),
        rtol=0,
        atol=1e-5,
    )
    assert {pydicom.dcmread(path).StudyInstanceUID for path in files} == {STUDY}
    assert pydicom.dcmread(files[1]).DeformableRegistrationSequence[0].SourceFrameOfReferenceUID == "1.9.1"


def test_they_are_written_when_asked_for_alone() -> None:
    assert {"seg", "reg"} == set(OUTPUTS) - set(chosen_outputs("all"))


def test_a_pair_without_labels_has_no_segmentation(
    pair: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del pair["moving_scan_label"]
    assert write_files(Registration(pair), tmp_path / "a_to_b", ("seg",)) == []
    assert "a_to_b has no output 'seg'" in caplog.text


def test_scans_that_are_no_series_are_refused_before_the_network_runs(folders: dict[str, str], tmp_path: Path) -> None:
    nifti = tmp_path / "scan.nii.gz"
    nifti.touch()
    request = registration_request(tmp_path, moving=str(nifti), fixed=folders["fixed"])
    assert RegistrationFolder(tmp_path / "out", {}, outputs="seg").remaining(request) == [(0, 1)]
    sentence = "The output reg needs a DICOM series as moving scan, but .*scan.nii.gz is none"
    with pytest.raises(InputError, match=sentence):
        RegistrationFolder(tmp_path / "out", {}, outputs="warped,reg").remaining(request)


def test_a_series_without_uids_is_refused_before_the_network_runs(folders: dict[str, str], tmp_path: Path) -> None:
    write_series(tmp_path / "bare", np.zeros((7, 6, 5), np.uint16), LAS, "1.2.3.6", FrameOfReferenceUID="")
    request = registration_request(tmp_path, moving=str(tmp_path / "bare"), fixed=folders["fixed"])
    with pytest.raises(InputError, match="The moving series has an instance without FrameOfReferenceUID"):
        RegistrationFolder(tmp_path / "out", {}, outputs="reg").remaining(request)


def test_a_handler_gives_each_pair_the_names_of_a_table(tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"41": "left putamen"}))
    assert PairKeeper(label_names=names).label_names == {41: "left putamen"}
    with pytest.raises(InputError, match="does not exist"):
        PairKeeper(label_names=tmp_path / "no.json")

# SPDX-License-Identifier: Apache-2.0
"""One reading of a header that can be read in two ways; ITK is the other reader."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.data import LoadSubjectd
from common.io.apply import Chain, warp_file
from common.io.nifti import open_nifti, read_grid, read_image, read_labels, write_ddf, write_image
from common.io.transforms import Field, read_transform

SHAPE = (7, 9, 5)


def placed(angles: tuple[float, float, float], origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * (1.5, 1.2, 2.0)
    affine[:3, 3] = origin
    return affine


SFORM, QFORM = placed((10, -5, 20), (-30, -25, -35)), placed((0, 6, 0), (-24, -31, -33))
SHEARED = SFORM.copy()
SHEARED[:3, 1] += 0.15 * SFORM[:3, 0]
LARGER = SFORM.copy()
LARGER[:3, :3] *= 1.06
# Without forms: voxel sizes, the first axis to the left, the centre at 0.
NO_FORM = np.diag([-1.5, 1.2, 2.0, 1.0])
NO_FORM[:3, 3] = [4.5, -4.8, -4.0]


def write(path: Path, sform: np.ndarray, sform_code: int, qform: np.ndarray, qform_code: int, unit: str = "mm") -> Path:
    file = nibabel.Nifti1Image(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), None)
    file.set_qform(qform, qform_code)
    file.set_sform(sform, sform_code)
    file.header.set_xyzt_units(unit)
    nibabel.save(file, path)
    return path


def by_itk(path: Path) -> np.ndarray:
    file = itk.imread(str(path))
    lps = np.eye(4)
    lps[:3, :3] = itk.array_from_matrix(file.GetDirection()) * np.array(list(file.GetSpacing()))
    lps[:3, 3] = list(file.GetOrigin())
    return np.diag([-1, -1, 1, 1]) @ lps


def corners(affine: np.ndarray) -> np.ndarray:
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in SHAPE], indexing="ij"), -1).reshape(-1, 3)
    return ends @ affine[:3, :3].T + affine[:3, 3]


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(corners(one) - corners(other), axis=1).max())


@pytest.mark.parametrize(
    ("sform_code", "qform_code", "right"),
    [(2, 1, SFORM), (4, 0, SFORM), (1, 2, SFORM), (5, 5, SFORM), (0, 1, QFORM), (0, 3, QFORM), (0, 0, NO_FORM)],
)
def test_every_reader_takes_the_sform_then_the_qform(
    tmp_path: Path, sform_code: int, qform_code: int, right: np.ndarray
) -> None:
    path = write(tmp_path / "a.nii.gz", SFORM, sform_code, QFORM, qform_code)
    loaded = LoadSubjectd()({"image": str(path), "label": str(path)})
    found = [read_grid(path).affine, read_image(path)[1], read_labels(path)[1]]
    for affine in (*found, loaded["image"].affine, loaded["label"].affine):
        np.testing.assert_allclose(affine.numpy(), right, atol=1e-5)


@pytest.mark.parametrize("kind", ["NIfTI-2", "big-endian"])
def test_so_it_is_in_other_kinds_of_header(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    array = np.zeros(SHAPE, np.float32)
    file = (
        nibabel.Nifti2Image(array, None)
        if kind == "NIfTI-2"
        else nibabel.Nifti1Image(array, None, nibabel.Nifti1Header(endianness=">"))
    )
    file.set_qform(QFORM, 1)
    file.set_sform(SFORM, 2)
    file.header.set_xyzt_units("micron")
    nibabel.save(file, tmp_path / "a.nii.gz")
    right = np.vstack([SFORM[:3] / 1000, SFORM[3:]])
    np.testing.assert_allclose(read_grid(tmp_path / "a.nii.gz").affine.numpy(), right, rtol=1e-5, atol=1e-8)
    assert "its sform (code 2) and its qform (code 1)" in caplog.text


def test_a_field_in_voxels_lies_where_the_form_that_counts_says(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), None)
    file.set_qform(QFORM, 1)
    file.set_sform(SFORM, 4)
    nibabel.save(file, tmp_path / "a_ddf.nii.gz")
    (stage,) = read_transform(tmp_path / "a_ddf.nii.gz").stages
    assert isinstance(stage, Field)
    np.testing.assert_allclose(stage.grid.affine.numpy(), SFORM, atol=1e-5)


@pytest.mark.parametrize("sform_code", range(6))
@pytest.mark.parametrize("qform_code", range(6))
@pytest.mark.parametrize("sform", [SFORM, LARGER, SHEARED], ids=["turned", "larger", "sheared"])
def test_what_is_said_of_itk_is_what_itk_does(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, sform: np.ndarray, sform_code: int, qform_code: int
) -> None:
    path = write(tmp_path / f"{sform_code}{qform_code}.nii", sform, sform_code, QFORM, qform_code)
    with caplog.at_level(logging.WARNING, logger="common"):
        affine = read_grid(path).affine.numpy()
        read_image(path)
    said = " ".join(caplog.messages)
    try:
        itks = by_itk(path)
    except RuntimeError:
        assert "cannot read it" in said and "not at right angles" in said
        return
    if sform_code == qform_code == 0:
        return  # said of the first file only
    assert len(caplog.messages) == (0 if apart(affine, itks) < 1e-3 and not (sform_code and qform_code) else 1)
    if sform_code and qform_code:
        assert f"{path}: its sform (code {sform_code}) and its qform (code {qform_code})" in said
        assert f"up to {apart(sform, QFORM):.3g} mm apart" in said
        takes_qform = apart(itks, QFORM) < 1e-3
        assert ("3D Slicer) takes the qform" in said) == takes_qform
        assert ("and in recent ITK" in said) == (not takes_qform)
    elif said:
        assert "pixdim says 1.5 x 1.2 x 2;" in said and f"up to {apart(affine, itks):.3g} mm elsewhere" in said


def test_files_without_any_form_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.io.header_forms._named", set())
    paths = [write(tmp_path / f"{name}.nii", SFORM, 0, QFORM, 0) for name in "ab"]
    for path in (*paths, *paths):
        affine = read_grid(path).affine.numpy()
    assert len(caplog.messages) == 1 and "a.nii: neither sform nor qform is set" in caplog.text
    assert f"up to {apart(affine, by_itk(paths[0])):.3g} mm elsewhere" in caplog.text


def test_voxel_sizes_that_only_the_sform_knows_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.nii", SFORM, 2, np.eye(4), 0)
    np.testing.assert_allclose(read_grid(path).affine.numpy(), SFORM, atol=1e-5)
    assert "voxels of 1.5 x 1.2 x 2, its pixdim says 1 x 1 x 1" in caplog.text
    assert f"up to {apart(SFORM, by_itk(path)):.3g} mm elsewhere" in caplog.text


@pytest.mark.parametrize("seed", range(40))
def test_forms_that_differ_by_rounding_alone_are_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    # A quaternion in single precision is least exact near half turns, where scanners' grids are.
    generator = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(generator.normal(size=3) * 10.0 ** -generator.uniform(0, 4))
    affine = np.eye(4)
    affine[:3, :3] = (turn.as_matrix() @ np.diag([-1, 1, -1])) * generator.uniform(0.3, 3, 3)
    affine[:3, 3] = generator.uniform(-300, 300, 3)
    file = nibabel.Nifti1Image(np.broadcast_to(np.float32(0), (256, 256, 180)), None)
    file.set_qform(affine, 1)
    file.set_sform(affine, 1)
    # Only the header is read.
    (tmp_path / "a.nii").write_bytes(file.header.binaryblock + bytes(4))
    read_grid(tmp_path / "a.nii")
    assert caplog.messages == []


@pytest.mark.parametrize(("shift", "turn"), [(0.1, 0.0), (0.0, 1.0), (-2.0, 0.3)])
def test_forms_that_lie_a_little_apart_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shift: float, turn: float
) -> None:
    other = SFORM.copy()
    other[:3, :3] = Rotation.from_euler("z", turn, degrees=True).as_matrix() @ SFORM[:3, :3]
    other[0, 3] += shift
    read_grid(write(tmp_path / "a.nii", SFORM, 2, other, 1))
    assert f"up to {apart(SFORM, other):.3g} mm apart" in caplog.text


def test_a_damaged_qform_beside_a_sform_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.nii", SFORM, 2, QFORM, 1)
    raw = bytearray(path.read_bytes())
    raw[256:260] = np.float32(1.7).tobytes()  # quatern_b
    path.write_bytes(raw)
    np.testing.assert_allclose(read_grid(path).affine.numpy(), SFORM, atol=1e-5)
    assert "its qform (code 1) is damaged" in caplog.text


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3), ("mm", 1.0), ("unknown", 1.0)])
@pytest.mark.parametrize("codes", [(2, 0), (0, 1), (1, 1)])
def test_units_are_converted_as_itk_does(tmp_path: Path, unit: str, factor: float, codes: tuple[int, int]) -> None:
    path = write(tmp_path / "a.nii", SFORM, codes[0], SFORM, codes[1], unit)
    right = np.vstack([factor * SFORM[:3], SFORM[3:]])
    for affine in (read_grid(path).affine, read_image(path)[1], LoadSubjectd()({"image": str(path)})["image"].affine):
        np.testing.assert_allclose(affine.numpy(), right, rtol=1e-5, atol=1e-5 * factor)
        np.testing.assert_allclose(affine.numpy(), by_itk(path), rtol=1e-5, atol=1e-5 * factor)


def test_distances_are_said_in_millimetres_whatever_the_unit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_grid(write(tmp_path / "a.nii", SFORM, 2, QFORM, 1, "micron"))
    assert f"up to {apart(SFORM, QFORM) / 1000:.3g} mm apart" in caplog.text


@pytest.mark.parametrize("kind", ["image", "field", "apply"])
@pytest.mark.parametrize("sform", [SFORM, placed((0.003, 180, -0.001), (1, 2, 3))], ids=["turned", "half turn"])
def test_both_forms_of_a_saved_file_agree(tmp_path: Path, kind: str, sform: np.ndarray) -> None:
    reference = write(tmp_path / "reference.nii.gz", sform, 4, QFORM, 1, "micron")
    grid, path = read_grid(reference), tmp_path / "saved.nii.gz"
    if kind == "image":
        write_image(path, torch.zeros(1, *SHAPE), grid.affine)
    elif kind == "field":
        write_ddf(path, torch.zeros(3, *SHAPE), grid.affine)
    else:
        warp_file(reference, path, Chain([], grid), reference)
    file: Any = nibabel.load(path)
    assert file.header["sform_code"] == file.header["qform_code"] == (4 if kind == "apply" else 1)
    assert file.header.get_xyzt_units()[0] == "mm"
    for affine in (file.get_sform(), file.get_qform(), *([] if kind == "field" else [by_itk(path)])):
        assert apart(affine, grid.affine.numpy()) < 1e-5


def test_no_qform_is_stated_where_it_cannot_hold_a_shear(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii", torch.zeros(1, *SHAPE), torch.from_numpy(SHEARED))
    file = open_nifti(tmp_path / "a.nii")
    assert file.header["sform_code"] == 1 and file.header["qform_code"] == 0
    np.testing.assert_allclose(file.affine, SHEARED, atol=1e-5)
    np.testing.assert_allclose(file.header.get_zooms(), np.linalg.norm(SHEARED[:3, :3], axis=0), rtol=1e-6)
    with pytest.raises(RuntimeError, match="orthonormal"):
        by_itk(tmp_path / "a.nii")

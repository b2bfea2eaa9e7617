# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.dicom_image import series_path
from common.io.nifti import open_image, read_grid, read_image, read_labels
from tests.dicom_slices import write_series

VALUES = np.arange(60).reshape(3, 4, 5).astype(np.uint16)
AFFINE = np.array([[0, 0, 2.0, 1], [0, 3, 0, 2], [-4, 0, 0, 3], [0, 0, 0, 1]])
"""Right-handed in LPS, so that slices keep their order."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_series(tmp_path / "study", VALUES, AFFINE)
    return tmp_path / "study"


def test_a_series_is_read_by_its_folder_its_uid_or_one_of_its_files(folder: Path) -> None:
    for path in (folder, str(folder), folder / "1.2.3.4", next(folder.iterdir())):
        values, affine = read_image(path)
        torch.testing.assert_close(values, torch.from_numpy(VALUES.astype(np.float32)), rtol=0, atol=0)
        # Decimal strings of ten digits.
        torch.testing.assert_close(affine, torch.from_numpy(AFFINE), rtol=0, atol=1e-9)
        assert read_labels(path)[0].dtype == torch.uint8
        assert series_path(path) == str(folder / "1.2.3.4")


def test_the_grid_needs_no_pixels(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.io.dicom_series.values_of", None)
    grid = read_grid(folder)
    assert grid.shape == (3, 4, 5)
    # Decimal strings of ten digits.
    torch.testing.assert_close(grid.affine, torch.from_numpy(AFFINE), rtol=0, atol=1e-9)


def test_header_states_the_place_as_nifti_does(folder: Path) -> None:
    file = open_image(folder)
    for form in (file.get_sform(), file.get_qform()):
        # A NIfTI header holds float32.
        np.testing.assert_allclose(form, AFFINE, atol=1e-5)
    assert int(file.header["sform_code"]) == int(file.header["qform_code"]) == 1


def test_a_tilted_series_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tilted = AFFINE.copy()
    tilted[2, 2] = 0.5
    write_series(tmp_path / "tilted", VALUES, tilted)
    read_image(tmp_path / "tilted")
    read_grid(tmp_path / "tilted")
    (said,) = caplog.messages
    assert "tilted by 14 degrees (gantry tilt)" in said


def test_one_of_two_series_is_chosen_by_uid(folder: Path) -> None:
    write_series(folder, VALUES + np.uint16(9), AFFINE, "1.2.3.5")
    assert series_path(folder, "1.2.3.5") == str(folder / "1.2.3.5")
    assert read_image(folder / "1.2.3.5")[0].min() == 9
    with pytest.raises(InputError, match="2 DICOM series"):
        series_path(folder)
    with pytest.raises(InputError, match=r"no images of the series 1\.2\.9, but"):
        read_image(folder / "1.2.9")


def test_what_is_no_series_stays_as_it_is_or_is_refused(folder: Path) -> None:
    assert series_path("a.nii.gz") == "a.nii.gz"
    with pytest.raises(InputError, match=r"a\.nii\.gz is no folder, so it holds no series 1\.2\.3\.4 to choose"):
        series_path("a.nii.gz", "1.2.3.4")
    shutil.copy(next(folder.iterdir()), folder / "a.nii.gz")
    with pytest.raises(InputError, match="is a DICOM file"):
        read_image(folder / "a.nii.gz")

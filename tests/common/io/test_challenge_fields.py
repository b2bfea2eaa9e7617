# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom

from common.checks import InputError
from common.io.challenge_fields import FORMATS, field_name

SHAPE = (8, 12, 10)


def ddf() -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def subject(id: str) -> dict[str, str]:
    return {"id": id, "image": f"images/{id}_0000.nii.gz"}


def test_lumir_field_is_float32_voxels_with_the_components_last_and_no_geometry(tmp_path: Path) -> None:
    FORMATS["lumir"].write(tmp_path / "disp.nii.gz", ddf())
    file = nibabel.load(tmp_path / "disp.nii.gz")
    assert file.shape == (*SHAPE, 3) and file.get_data_dtype() == np.float32
    assert np.array_equal(file.affine, np.eye(4)) and file.header.get_zooms()[:3] == (1, 1, 1)
    assert np.array_equal(np.asarray(file.dataobj), ddf().movedim(0, -1).numpy())
    assert FORMATS["lumir"].problem(tmp_path / "disp.nii.gz", SHAPE) is None


def test_oasis_field_is_half_the_size_with_values_of_the_full_grid(tmp_path: Path) -> None:
    FORMATS["oasis"].write(tmp_path / "disp.npz", ddf())
    with np.load(tmp_path / "disp.npz") as file:
        assert file.files == ["arr_0"]
        half = file["arr_0"]
    assert half.shape == (3, 4, 6, 5) and half.dtype == np.float16
    expected = np.stack([zoom(channel, 0.5, order=2, mode="nearest") for channel in ddf().numpy()])
    assert np.array_equal(half, expected.astype(np.float16))
    assert FORMATS["oasis"].problem(tmp_path / "disp.npz", SHAPE) is None


@pytest.mark.parametrize(("challenge", "value"), [("lumir", torch.inf), ("oasis", torch.nan), ("oasis", 7e4)])
def test_field_that_its_type_cannot_hold_is_not_written(challenge: str, value: float, tmp_path: Path) -> None:
    field = ddf()
    field[0, 2:6, 2:6, 2:6] = value  # 65504 is the largest number of half precision
    with pytest.raises(InputError, match="disp is not written"):
        FORMATS[challenge].write(tmp_path / "disp", field)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("naming", "names"),
    [
        ("short", ("disp_3455_3454.nii.gz", "disp_0395_0396.npz")),
        ("long", ("disp_3455_0000_3454_0000.nii.gz", "disp_0395_0000_0396_0000.npz")),
    ],
)
def test_names_say_the_fixed_image_first(naming: str, names: tuple[str, str]) -> None:
    assert field_name("lumir", subject("LUMIRMRI_3454"), subject("LUMIRMRI_3455"), naming) == names[0]
    assert field_name("oasis", subject("OASIS_0396"), subject("0395"), naming) == names[1]


def test_names_need_a_known_form_and_four_digits() -> None:
    one = subject("LUMIRMRI_3455")
    with pytest.raises(InputError, match="names short or long"):
        field_name("lumir", one, one, "middle")
    with pytest.raises(InputError, match="brain_0000.nii.gz is not named"):
        field_name("lumir", subject("brain"), one)


def write_nifti(path: Path, values: np.ndarray, spacing: float = 1.0) -> None:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([spacing, spacing, spacing, 1])), path)


def field(dtype: type = np.float32) -> np.ndarray:
    return np.ones((*SHAPE, 3), dtype)


@pytest.mark.parametrize(
    ("values", "spacing", "problem"),
    [
        (field()[..., :2], 1.0, "has the shape"),
        (np.moveaxis(field(), -1, 0), 1.0, "has the shape"),
        (field(np.float64), 1.0, "holds float64 in place of float32"),
        (field() * np.nan, 1.0, "NaN"),
        (field() * np.inf, 1.0, "infinite"),
        (field(), 2.0, "affine"),
    ],
)
def test_unfit_nifti_is_recognised(tmp_path: Path, values: np.ndarray, spacing: float, problem: str) -> None:
    write_nifti(tmp_path / "disp.nii.gz", values, spacing)
    assert problem in str(FORMATS["lumir"].problem(tmp_path / "disp.nii.gz", SHAPE))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"arr_0": np.ones((3, *SHAPE), np.float16)}, "has the shape"),
        ({"arr_0": np.ones((3, 4, 6, 5), np.float32)}, "holds float32 in place of float16"),
        ({"ddf": np.ones((3, 4, 6, 5), np.float16)}, "holds ddf in place of arr_0"),
        ({"arr_0": np.full((3, 4, 6, 5), np.inf, np.float16)}, "infinite"),
    ],
)
def test_unfit_npz_is_recognised(tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
    np.savez(tmp_path / "disp.npz", **arrays)
    assert problem in str(FORMATS["oasis"].problem(tmp_path / "disp.npz", SHAPE))


@pytest.mark.parametrize(("challenge", "name"), [("lumir", "disp.nii.gz"), ("oasis", "disp.npz")])
def test_damaged_file_is_recognised(tmp_path: Path, challenge: str, name: str) -> None:
    FORMATS[challenge].write(tmp_path / name, ddf())
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    assert "cannot be read" in str(FORMATS[challenge].problem(tmp_path / name, SHAPE))

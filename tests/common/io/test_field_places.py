# SPDX-License-Identifier: Apache-2.0
"""Fields in voxels with headers that are real, made up, or half lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from common.io.apply import Chain, warp_file
from common.io.fields import read_field
from common.io.nifti import read_grid
from common.io.transforms import Field, read_transform
from common.spatial.world import Grid

SHAPE = (14, 12, 10)


def save(path: Path, array: np.ndarray, affine: Any) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def placed(size: float, origin: tuple[float, float, float]) -> np.ndarray:
    affine = np.diag([size, size, size, 1.0])
    affine[:3, 3] = origin
    return affine


def wave() -> np.ndarray:
    steps = np.indices(SHAPE).sum(0)
    return np.stack([np.sin(steps / 4), np.cos(steps / 5), 0.4 * np.sin(steps / 3)], -1).astype(np.float32)


@pytest.mark.parametrize("origin", [(2.0, 0.0, 0.0), (-3.0, 4.0, 1.0)])
def test_a_field_of_an_image_at_0_keeps_its_place_on_a_shifted_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, origin: tuple[float, float, float]
) -> None:
    own, shifted = placed(2.0, (0, 0, 0)), placed(2.0, origin)
    field = save(tmp_path / "ddf.nii", wave(), own)
    moving = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    path, reference = save(tmp_path / "m.nii", moving, own), save(tmp_path / "r.nii", moving, shifted)
    warp_file(path, tmp_path / "out.nii", Chain([str(field)], read_grid(reference), ["voxels"]), reference)
    # Points of the reference in voxels of the field and of the moving image; the field is 0 outside its grid.
    places = np.indices(SHAPE).astype(float) + (np.array(origin) / 2).reshape(3, 1, 1, 1)
    moved = [places[k] + map_coordinates(wave()[..., k], places, order=1, mode="constant") for k in range(3)]
    inside = np.all([(0 < p) & (p < n - 1) for p, n in zip((*places, *moved), SHAPE * 2, strict=True)], axis=0)
    right = map_coordinates(moving, moved, order=1)
    found = np.asarray(nibabel.load(tmp_path / "out.nii").dataobj)
    np.testing.assert_allclose(found[inside], right[inside], atol=1e-4)
    assert inside.mean() > 0.2 and "from 0 on, which is not where the reference lies" in caplog.text


def test_it_says_itself_where_it_lies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "ddf.nii", wave(), placed(2.0, (0, 0, 0)))
    for reference in (None, read_grid(save(tmp_path / "r.nii", wave()[..., 0], placed(2.0, (0, 0, 0))))):
        (stage,) = read_transform(path, reference, "voxels").stages
        assert isinstance(stage, Field) and stage.grid.spacing == (2, 2, 2)
    assert caplog.messages == []


@pytest.mark.parametrize("affine", [None, np.eye(4), np.diag([-1.0, -1, 1, 1])], ids=["none", "RAS", "LPS"])
def test_a_header_of_no_image_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture, affine: Any) -> None:
    path, grid = save(tmp_path / "ddf.nii", wave(), affine), Grid(SHAPE, torch.from_numpy(placed(2.0, (5, 6, 7))))
    (stage,) = read_transform(path, grid).stages
    assert isinstance(stage, Field) and stage.grid is grid
    assert ("taken to lie on the reference" in caplog.text) == (affine is not None)
    caplog.clear()
    np.testing.assert_array_equal(read_field(path, grid)[0][0].movedim(0, -1).numpy(), wave())
    assert caplog.messages == []


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)])
def test_the_evaluation_says_that_a_header_puts_a_field_elsewhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, origin: tuple[float, float, float]
) -> None:
    grid = Grid(SHAPE, torch.from_numpy(placed(2.0, (5, 0, 0))))
    found, _ = read_field(save(tmp_path / "ddf.nii", wave(), placed(2.0, origin)), grid)
    np.testing.assert_array_equal(found[0].movedim(0, -1).numpy(), wave())
    assert f"voxels lie up to {(5 - origin[0]) / 2:.3g} voxels from those of the fixed image" in caplog.text


def test_a_field_of_one_shift_is_one_whatever_its_origin(tmp_path: Path) -> None:
    # The moving scan lies 100 mm away in a world whose first fixed voxel is at 0.
    path = save(tmp_path / "ddf.nii", wave() + np.array([50, 0, 0], np.float32), placed(2.0, (0, 0, 0)))
    assert read_field(path, read_grid(save(tmp_path / "f.nii", wave()[..., 0], placed(2.0, (0, 0, 0)))))[1] == "voxels"

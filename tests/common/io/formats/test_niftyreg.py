# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.formats.reader import read_world
from common.io.transforms import Grid, read_transform

FIXED = Grid((12, 14, 10), torch.tensor([[-2.0, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1]]))
VOXELS = np.array([[0, 0, 0], [5, 7, 3], [11, 13, 9], [2, 10, 6]])
# reg_transform -ref FIXED -def GRID of NiftyReg 1.5.70, at these voxels.
BY_NIFTYREG = [
    [20.06309, -8.56597, 5.2137594],
    [10.274117, 1.8171016, 14.394879],
    [-2.406606, 10.8171015, 31.419516],
    [16.417948, 6.4340305, 23.757668],
]


def control_grid(path: Path, shape: tuple[int, int, int] = (7, 7, 7)) -> Path:
    """Knots every 4, 5 and 3 voxels, from one knot before the first voxel."""
    matrix = FIXED.affine.numpy() @ np.array([[4.0, 0, 0, -4], [0, 5, 0, -5], [0, 0, 3, -3], [0, 0, 0, 1]])
    i, j, k = np.meshgrid(*map(np.arange, shape), indexing="ij")
    own = np.stack([i, j, k], -1) @ matrix[:3, :3].T + matrix[:3, 3]
    points = own + np.stack([np.sin(i + 2 * j), 2 * np.cos(j - k), 0.3 * k * np.sin(i)], -1)
    file: Any = nibabel.Nifti1Image(points.astype(np.float32)[..., None, :], matrix)
    file.header["intent_code"], file.header["intent_name"], file.header["intent_p1"] = 1007, b"NREG_TRANS", 2
    nibabel.save(file, path)
    return path


def test_control_points_as_niftyreg_evaluates_them(tmp_path: Path) -> None:
    path = control_grid(tmp_path / "cpp.nii.gz")
    world = read_world(path, "auto", FIXED)
    assert world is not None and world[1] == "niftyreg_spline"
    points = torch.from_numpy(VOXELS).double() @ FIXED.affine[:3, :3].T + FIXED.affine[:3, 3]
    np.testing.assert_allclose(world[0].points(points).numpy(), BY_NIFTYREG, atol=1e-4)
    # A part of the scan, or its every second voxel, has the same spline.
    crop = FIXED.cropped((5, 7, 3), (12, 14, 10))
    found = read_transform(path, crop).points(points[1:2])
    np.testing.assert_allclose(found.numpy(), BY_NIFTYREG[1:2], atol=1e-4)


def test_control_points_that_belong_to_another_scan(tmp_path: Path) -> None:
    path = control_grid(tmp_path / "cpp.nii.gz")
    with pytest.raises(InputError, match="spline grid of NiftyReg, which has to be sampled: give the fixed scan"):
        read_transform(path)
    with pytest.raises(InputError, match="does not cover the reference"):
        read_transform(control_grid(tmp_path / "small.nii.gz", (7, 5, 7)), FIXED)
    turned = FIXED.affine.clone()
    turned[0, 1] = 0.3
    with pytest.raises(InputError, match="turned against those of the reference.*reg_transform"):
        read_transform(path, Grid(FIXED.shape, turned))
    with pytest.raises(InputError, match="cubic spline grid of NiftyReg, but --convention ras_positions .* state auto"):
        read_transform(path, FIXED, "ras_positions")

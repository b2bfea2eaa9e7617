# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.formats.matrices import parse_matrix
from common.io.transforms import Grid, read_transform

IDENTITY = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"


@pytest.mark.parametrize("name", ["affine.mat", "affine.txt", "affine.aff", "affine"])
def test_matrices_of_greedy_niftyreg_and_mrtrix_go_from_the_fixed_to_the_moving_world(scene: Any, name: str) -> None:
    # MRtrix writes comments and tabs, NiftyReg spaces at the ends.
    text = "# mrregister\n" + "\n".join("\t".join(f"{v:.12g}" for v in row) + " " for row in scene.affine)
    (scene.folder / name).write_text(text)
    transform = read_transform(scene.folder / name, convention="ras_matrix")
    expected = scene.places @ scene.affine[:3, :3].T + scene.affine[:3, 3]
    np.testing.assert_allclose(scene.found(transform), expected, atol=1e-9)


def test_matrices_of_flirt_go_from_the_moving_to_the_fixed_scan_in_fsls_millimetres(scene: Any) -> None:
    def fsl(grid: Grid, world: np.ndarray) -> np.ndarray:
        """By FSL's documentation: voxels times their size, the first axis reversed for neurological scans."""
        voxels = world @ np.linalg.inv(grid.affine.numpy())[:3].T
        if np.linalg.det(grid.affine[:3, :3].numpy()) > 0:
            voxels[:, 0] = grid.shape[0] - 1 - voxels[:, 0]
        return voxels * grid.spacing

    points = np.array([[0.0, 0, 0, 1], [10, 0, 0, 1], [0, 10, 0, 1], [0, 0, 10, 1]])
    there = points @ scene.affine.T
    # The affine map that takes the four points of the moving scan to those of the fixed one.
    sides = [
        np.column_stack([fsl(grid, world), np.ones(4)])
        for grid, world in ((scene.moving, there), (scene.fixed, points))
    ]
    np.savetxt(scene.folder / "flirt.mat", np.linalg.solve(*sides).T)
    transform = read_transform(scene.folder / "flirt.mat", scene.fixed, "flirt", scene.moving)
    np.testing.assert_allclose(transform.points(torch.from_numpy(points[:, :3])).numpy(), there[:, :3], atol=1e-9)
    for grids in ((None, scene.moving), (scene.fixed, None)):
        with pytest.raises(InputError, match="matrix of FLIRT and needs both of its scans: .*--reference.*--moving"):
            read_transform(scene.folder / "flirt.mat", grids[0], "flirt", grids[1])


def test_a_matrix_of_flirt_as_fslpy_reads_it(tmp_path: Path) -> None:
    # fslpy 3.29.1: fromFlirt(matrix, moving, fixed, "world", "world"), inverted.
    fixed = Grid((12, 14, 10), torch.tensor([[-2.0, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1]]))
    moving = Grid((15, 13, 16), torch.tensor([[1.0, 0, 0, -7], [0, 0, 2, -20], [0, -1.25, 0, 9], [0, 0, 0, 1]]))
    (tmp_path / "a.mat").write_text("0.98 0.1 0 1.5\n-0.1 1.02 0.05 -2\n0 -0.05 0.97 3\n0 0 0 1\n")
    found = read_transform(tmp_path / "a.mat", fixed, "flirt", moving)
    points = torch.tensor([[20.0, -10, 5], [3, 4, 20], [-2, 9.5, 32]])
    expected = [
        [8.72837205, -22.99288422, 7.06195392],
        [-7.14034155, -6.78223439, -7.42465282],
        [-11.70967709, 5.85799817, -12.64516451],
    ]
    np.testing.assert_allclose(found.points(points).numpy(), expected, atol=1e-5)


def test_a_matrix_must_be_stated(tmp_path: Path) -> None:
    (tmp_path / "greedy.mat").write_text(IDENTITY)
    with pytest.raises(InputError, match="4x4 matrix of text.*state --convention ras_matrix .Greedy.*flirt .FSL"):
        read_transform(tmp_path / "greedy.mat")
    with pytest.raises(InputError, match="4x4 matrix of text, but --convention ras_mm was stated"):
        read_transform(tmp_path / "greedy.mat", convention="ras_mm")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "last row"),
        ("1 0 0 0\n0 1 0 0\n0 0 nan 0\n0 0 0 1\n", "no matrix of an affine map"),
        ("1 0 0 0\n0 1 0 0\n0 1 0 0\n0 0 0 1\n", "cannot be inverted"),
    ],
)
def test_matrices_of_no_affine_map(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(rows)
    with pytest.raises(InputError, match=message):
        read_transform(tmp_path / "a.txt", convention="ras_matrix")


def test_what_is_a_matrix() -> None:
    assert parse_matrix(IDENTITY.encode()) is not None
    assert parse_matrix(b"% c\r\n1,0,0,0\r\n0,1,0,0\r\n\r\n0,0,1,0\r\n0,0,0,1") is not None
    for other in (b"1 0 0\n0 1 0\n0 0 1\n", b"", b"1 0 0 0\n" * 3, b"a b\n", b"1 2\n3\n", b"\0" * 64):
        assert parse_matrix(other) is None

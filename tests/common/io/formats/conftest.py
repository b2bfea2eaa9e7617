# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

from common.io.header_forms import set_world
from common.spatial import Grid


@dataclass
class Scene:
    """Two scans on unlike oblique grids, and where each voxel of the fixed one lies in the moving world."""

    fixed: Grid
    moving: Grid
    places: np.ndarray
    positions: np.ndarray
    affine: np.ndarray
    folder: Path

    def save(self, name: str, vectors: np.ndarray, axes: int = 5, **header: Any) -> Path:
        """By nibabel alone."""
        values = vectors.astype(np.float32)
        file: Any = nibabel.Nifti1Image(values[..., None, :] if axes == 5 else values, self.fixed.affine.numpy())
        for key, value in header.items():
            file.header[key] = value
        nibabel.save(file, self.folder / name)
        return self.folder / name

    def image(self, name: str, grid: Grid) -> Path:
        file: Any = nibabel.Nifti1Image(np.ones(grid.shape, np.float32), None)
        set_world(file, grid.affine.numpy())
        nibabel.save(file, self.folder / name)
        return self.folder / name

    def found(self, transform: Any) -> np.ndarray:
        """Where a transform puts the voxels, (X, Y, Z, 3)."""
        moved = transform.points(torch.from_numpy(self.places.reshape(-1, 3)))
        return moved.numpy().reshape(self.places.shape)


def placed(angles: tuple[float, ...], spacing: tuple[float, ...], centre: tuple[float, ...], shape: Any) -> Grid:
    affine = torch.eye(4, dtype=torch.float64)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing
    affine[:3, :3] = torch.from_numpy(turn.astype(np.float32).astype(np.float64))
    affine[:3, 3] = torch.tensor(centre).double() - affine[:3, :3] @ ((torch.tensor(shape).double() - 1) / 2)
    return Grid(shape, affine.float().double())


@pytest.fixture(params=[-1, 1], ids=["radiological", "neurological"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Scene:
    """FSL reverses the first axis of one of the two scans."""
    sign = request.param
    fixed = placed((8, -5, 12), (sign * 1.5, 1.2, 2.0), (3, -2, 5), (12, 14, 10))
    moving = placed((-5, 9, 3), (-sign * 1.3, 1.4, 1.7), (6, -5, 8), (15, 13, 16))
    index = np.stack(np.meshgrid(*map(np.arange, fixed.shape), indexing="ij"), -1).astype(float)
    matrix = fixed.affine.numpy()
    places = index @ matrix[:3, :3].T + matrix[:3, 3]
    coarse = np.random.default_rng(0).normal(size=(3, 3, 3, 3))
    bent = places + 2 * zoom(coarse, (4, 14 / 3, 10 / 3, 1), order=1)
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (3, -2, 4), degrees=True).as_matrix() * (1.03, 0.98, 1.01)
    affine[:3, 3] = (2, -1.5, 1)
    return Scene(fixed, moving, places, bent @ affine[:3, :3].T + affine[:3, 3], affine, tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Warps of FNIRT; the figures are those of fslpy 3.29.1: readFnirt(file, moving, fixed).transform(VOXELS, ...)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.fields import read_field
from common.io.formats.reader import read_world
from common.io.formats.splines import cubic_spline
from common.io.transforms import Grid, read_transform

FIXED = Grid((12, 14, 10), torch.tensor([[-2.0, 0, 0, 20], [0, 1.5, 0, -10], [0, 0, 3, 5], [0, 0, 0, 1]]))
MOVING = Grid((15, 13, 16), torch.tensor([[1.0, 0, 0, -7], [0, 0, 2, -20], [0, -1.25, 0, 9], [0, 0, 0, 1]]))
VOXELS = np.array([[0, 0, 0], [5, 7, 3], [11, 13, 9], [2, 10, 6]])
BY_WARP = [
    [7.0, -20.0, 7.5],
    [-4.29847217, -10.9, -0.08666646],
    [-15.59445965, 7.69999999, -11.202775],
    [1.15852904, -1.0, -5.01953459],
]
BY_COEFFICIENTS = [
    [8.66528409, -22.77912507, 6.34493881],
    [-0.65742453, -12.76782132, -4.30214545],
    [-11.27488429, 5.29841134, -13.28724589],
    [5.6594779, -2.95580179, -7.67577117],
]
PREMAT = np.array([[0.98, 0.1, 0, 1.5], [-0.1, 1.02, 0.05, -2], [0, -0.05, 0.97, 3], [0, 0, 0, 1]])


def index(shape: tuple[int, ...]) -> Any:
    return np.meshgrid(*map(np.arange, shape), indexing="ij")


def relative() -> np.ndarray:
    i, j, k = index(FIXED.shape)
    return np.stack([np.sin(i * 0.5) + 0.1 * j, np.cos(j * 0.4) * 1.5, 0.2 * k - 0.1 * i], -1)


def save(path: Path, vectors: np.ndarray, intent: int = 2006) -> Path:
    file: Any = nibabel.Nifti1Image(vectors.astype(np.float32), FIXED.affine.numpy())
    file.header["intent_code"] = intent
    nibabel.save(file, path)
    return path


def coefficients(path: Path, **header: float) -> Path:
    """The header as FNIRT has it: pixdim knots, sform the affine, qform's offset the fixed shape, intent its voxels."""
    i, j, k = index((6, 5, 6))
    values = np.stack([np.sin(i + 2 * j), np.cos(j - k), 0.3 * k * np.sin(i)], -1)
    file: Any = nibabel.Nifti1Image(values.astype(np.float32), np.eye(4))
    file.set_sform(PREMAT, 1)
    file.header["intent_code"], file.header["qform_code"] = 2007, 1
    fields: dict[str, float] = dict(zip(("qoffset_x", "qoffset_y", "qoffset_z"), FIXED.shape, strict=True))
    fields |= dict(zip(("intent_p1", "intent_p2", "intent_p3"), FIXED.spacing, strict=True)) | header
    for name, value in fields.items():
        file.header[name] = value
    file.header["pixdim"][1:4] = (4, 5, 3)
    nibabel.save(file, path)
    return path


def places(path: Path, convention: str = "auto") -> np.ndarray:
    world = torch.from_numpy(VOXELS).double() @ FIXED.affine[:3, :3].T + FIXED.affine[:3, 3]
    return read_transform(path, FIXED, convention, MOVING).points(world).numpy()


def test_displacements_and_positions_are_told_apart(tmp_path: Path) -> None:
    np.testing.assert_allclose(places(save(tmp_path / "a.nii.gz", relative())), BY_WARP, atol=1e-4)
    # The fixed scan is radiological: its coordinates are voxels times their sizes.
    absolute = relative() + np.stack(index(FIXED.shape), -1) * FIXED.spacing
    path = save(tmp_path / "b.nii.gz", absolute)
    np.testing.assert_allclose(places(path), BY_WARP, atol=1e-4)
    found = read_world(path, "auto", FIXED, MOVING)
    assert found is not None and found[1] == "fsl_absolute"
    with pytest.raises(InputError, match="holds positions, not displacements: state fsl_absolute"):
        places(path, "fsl_relative")
    with pytest.raises(InputError, match="is a warp of FNIRT, but --convention ras_mm was stated"):
        places(path, "ras_mm")


def test_a_warp_that_lost_its_intent_can_be_stated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", relative(), intent=0)
    np.testing.assert_allclose(places(path, "fsl_relative"), BY_WARP, atol=1e-4)
    with pytest.raises(InputError, match="does not say what its vectors are"):
        places(path)


def test_coefficients_with_the_affine_that_fnirt_began_with(tmp_path: Path) -> None:
    path = coefficients(tmp_path / "c.nii.gz")
    np.testing.assert_allclose(places(path), BY_COEFFICIENTS, atol=1e-4)
    ddf, found = read_field(path, FIXED, "auto", MOVING)
    assert found == "fsl_coefficients"
    moved = VOXELS + np.stack([component[tuple(VOXELS.T)] for component in ddf[0].numpy()], -1)
    world = moved @ FIXED.affine[:3, :3].numpy().T + FIXED.affine[:3, 3].numpy()
    np.testing.assert_allclose(world, BY_COEFFICIENTS, atol=1e-4)


def test_what_files_of_fnirt_need(tmp_path: Path) -> None:
    for path in (save(tmp_path / "a.nii.gz", relative()), coefficients(tmp_path / "c.nii.gz")):
        with pytest.raises(InputError, match="needs both of its scans: .*--reference .*--moving"):
            read_transform(path, FIXED)
    for name, value in (("qoffset_y", 15), ("intent_p3", 2.5)):
        with pytest.raises(
            InputError, match="was made for a fixed scan of .* but the reference has .*: give that scan"
        ):
            places(coefficients(tmp_path / "c.nii.gz", **{name: value}))


def test_splines_by_the_pieces_of_the_basis() -> None:
    values = np.random.default_rng(0).normal(size=(7, 6, 5, 2))
    t = np.array([2.3, 1.75, 3.0])
    expected = np.zeros(2)
    for m, n, o in np.ndindex(7, 6, 5):
        weight = 1.0
        for distance in np.abs(t - (m, n, o)):
            # Rueckert et al. 1999, equations of B_0 to B_3.
            u = distance % 1
            weight *= (3 * u**3 - 6 * u**2 + 4) / 6 if distance < 1 else (1 - u) ** 3 / 6 if distance < 2 else 0
        expected += weight * values[m, n, o]
    found = cubic_spline(values, [np.array([place]) for place in t])
    np.testing.assert_allclose(found[0, 0, 0], expected, atol=1e-6)

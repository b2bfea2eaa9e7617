# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from common.data.phantom import make_subject, make_template
from common.spatial import warp
from scripts import baseline_pair
from scripts.baseline_pair import LoadedScan
from scripts.classical import METHODS, from_normalised, to_voxels, zero

from .conftest import SPACING, oblique_affine

SIZE = (24, 28, 20)
CLASSICAL = [name for name in METHODS if name != "zero"]
# FireANTs knows no level below 32 voxels along an axis.
SIZES = {"fireants": (32, 36, 33)}
# Published numbers of iterations take half a minute even here.
SHORTER: dict[str, dict[str, Any]] = {
    "elastix": {"parameters": METHODS["elastix"].options["parameters"] | {"MaximumNumberOfIterations": [60]}},
    "fireants": {"scales": [1], "iterations": [30]},
}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[LoadedScan, LoadedScan]:
    """Moving and fixed phantom on an oblique, mirrored grid."""
    return make_pair(tmp_path, SIZE)


def make_pair(folder: Path, size: tuple[int, int, int]) -> tuple[LoadedScan, LoadedScan]:
    template = make_template(size, 6, seed=1)
    return scan(folder, template, "moving", 2), scan(folder, template, "fixed", 1)


def scan(folder: Path, template: Any, name: str, number: int) -> LoadedScan:
    path = folder / f"{name}.nii.gz"
    nibabel.save(
        nibabel.Nifti1Image(make_subject(template, 1, number).image.astype(np.float32), oblique_affine()), path
    )
    return baseline_pair.read_scan({"id": name, "image": str(path)})


def register(name: str, pair: tuple[LoadedScan, LoadedScan], folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Field (3, *spatial) as written, and its entry in the record."""
    for module in METHODS[name].modules:
        pytest.importorskip(module)
    settings = {"method": name, "threads": 1, "options": {**METHODS[name].options, **SHORTER.get(name, {})}}
    case = baseline_pair.run_pair(*pair, settings, folder, sys.executable)
    ddf = nibabel.load(folder / "moving_to_fixed_ddf.nii.gz").get_fdata()
    return torch.from_numpy(ddf).movedim(-1, 0), case


@pytest.mark.parametrize("flip", [True, False])
def test_spacing_of_an_oblique_header_is_that_along_the_array_axes(flip: bool) -> None:
    scan = baseline_pair.LoadedScan({}, torch.zeros(SIZE), torch.from_numpy(oblique_affine(flip)))
    assert scan.spacing == pytest.approx(SPACING)


def test_millimetres_along_the_array_axes_become_voxels() -> None:
    vectors = np.broadcast_to(np.reshape([3.0, 3.0, -5.0], (3, 1, 1, 1)), (3, *SIZE))
    ddf = to_voxels(vectors, SPACING)
    assert ddf.dtype == np.float32
    np.testing.assert_array_equal(ddf[:, 0, 0, 0], [2, 3, -2])


def test_normalised_positions_become_voxels() -> None:
    """Positions as grid_sample of the transposed image takes them: where it samples, our warp by the field does."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, *SIZE, generator=random, dtype=torch.float64)
    positions = torch.rand(1, *SIZE[::-1], 3, generator=random, dtype=torch.float64) * 1.8 - 0.9
    ddf = torch.from_numpy(from_normalised(positions[0].numpy()))
    assert ddf.dtype == torch.float32 and ddf.shape == (3, *SIZE)
    sampled = torch.nn.functional.grid_sample(image.permute(0, 1, 4, 3, 2), positions, align_corners=True)
    # float32 places voxels to 1e-6 of 28.
    torch.testing.assert_close(warp(image, ddf[None].double())[0, 0], sampled[0, 0].permute(2, 1, 0), atol=1e-5, rtol=0)


def test_zero_moves_nothing() -> None:
    moving = np.random.default_rng(0).random(SIZE)
    ddf, warped = zero(moving, moving, SPACING, 1, {})
    assert ddf.shape == (3, *SIZE) and not ddf.any() and warped is moving


@pytest.mark.parametrize("name", CLASSICAL)
def test_package_registers_unequal_voxels_and_its_field_is_what_it_applied(name: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, SIZES.get(name, SIZE))
    ddf, case = register(name, pair, tmp_path)
    assert case["max_difference"] < 1e-3 and case["cpu_seconds"] > 0
    moving, fixed = (scan.image.double() for scan in pair)
    warped = warp(moving[None, None], ddf[None])[0, 0]
    assert (warped - fixed).square().mean() < 0.6 * (moving - fixed).square().mean()


def test_field_and_header_together_are_right_in_the_world_of_itk(
    pair: tuple[LoadedScan, LoadedScan], tmp_path: Path
) -> None:
    """Independent of our warp: ITK resamples scans with oblique, mirrored headers by the field turned to LPS."""
    sitk = pytest.importorskip("SimpleITK")
    ddf, _ = register("demons", pair, tmp_path)
    image = sitk.ReadImage(pair[0].subject["image"], sitk.sitkFloat64)
    to_lps = np.diag([-1, -1, 1]) @ oblique_affine()[:3, :3]
    vectors = sitk.GetImageFromArray(np.einsum("ab,bijk->kjia", to_lps, ddf.numpy()), isVector=True)
    vectors.CopyInformation(image)
    resampled = sitk.Resample(image, image, sitk.DisplacementFieldTransform(vectors), sitk.sitkLinear, 0.0)
    theirs = torch.from_numpy(sitk.GetArrayFromImage(resampled).T.copy())
    assert baseline_pair.difference_to_package(pair[0].image, ddf, theirs)[0] < 1e-5

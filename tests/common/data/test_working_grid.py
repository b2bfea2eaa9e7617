# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.checks import InputError
from common.data import WorkingGridd
from common.data.working_grid import sized_grid, turned_grid
from common.spatial import Grid, resample

LAS = torch.tensor([[-2.0, 0, 0, 30], [0, 2, 0, -10], [0, 0, 2, 5], [0, 0, 0, 1]], dtype=torch.float64)


def scan(values: np.ndarray, affine: torch.Tensor = LAS) -> MetaTensor:
    return MetaTensor(torch.from_numpy(values)[None], affine=affine, meta={"filename_or_obj": "a.nii.gz"})


def test_axes_are_those_of_ras_and_the_size_is_cut_or_filled_about_the_centre() -> None:
    values = np.arange(6 * 4 * 5, dtype=np.float32).reshape(6, 4, 5)
    labels = (values % 3).astype(np.uint8)
    made = WorkingGridd(["image", "label"], None, (4, 6, 5))({"image": scan(values), "label": scan(labels), "id": "a"})
    image, label = made["image"], made["label"]
    assert image.shape == (1, 4, 6, 5) and label.dtype == torch.uint8 and made["id"] == "a"
    assert image.meta["filename_or_obj"] == "a.nii.gz"
    # Left becomes right; a voxel less and more on either side.
    # Weights of interpolation are rounded, at whole voxels as well.
    np.testing.assert_allclose(image[0, :, 1:-1].numpy(), values[::-1][1:-1], rtol=1e-6)
    np.testing.assert_array_equal(label[0, :, 1:-1].numpy(), labels[::-1][1:-1])
    assert bool((image[:, :, [0, -1]] == values.min()).all()) and bool((label[:, :, [0, -1]] == 0).all())
    corner = image.affine @ torch.tensor([0.0, 1, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(corner, LAS @ torch.tensor([4.0, 0, 0, 1], dtype=torch.float64))


def test_larger_voxels_are_means() -> None:
    values = np.random.default_rng(0).random((24, 24, 24), np.float32)
    made = WorkingGridd("image", (8, 8, 8), (6, 6, 6))({"image": scan(values)})["image"]
    assert made.pixdim.tolist() == pytest.approx([8, 8, 8]) and float(made.mean()) == pytest.approx(0.5, abs=0.02)
    # Of 64 random values a mean varies an eighth as much, of one it would vary as much.
    assert float(made.std()) < 0.3 * values.std()


def test_scans_of_one_grid_stay_on_one_grid() -> None:
    grid = Grid((512, 512, 121), torch.diag(torch.tensor([0.625, 0.625, 2.5, 1])))
    target = sized_grid(grid, (2.0, 2.0, 2.0), (175, 175, 175))
    assert target.shape == (175, 175, 175) and target.spacing == pytest.approx((2, 2, 2))
    centres = [one.affine @ torch.tensor([*[(n - 1) / 2 for n in one.shape], 1.0]).double() for one in (grid, target)]
    # Half a voxel, where one number is even and the other odd.
    assert float((centres[0] - centres[1]).abs().max()) <= 1 + 1e-6
    assert sized_grid(grid, None, grid.shape).same_as(grid)


def test_flat_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"a\.nii\.gz is no volume"):
        WorkingGridd("image", None, (4, 4, 4))({"image": scan(np.zeros((4, 4), np.float32))})


def test_a_size_of_too_few_axes_is_refused() -> None:
    with pytest.raises(InputError, match=r"spatial_size is \[8, 8\], but the scan is 3D: give 3 numbers"):
        sized_grid(Grid((8, 8, 8), torch.eye(4, dtype=torch.float64)), None, (8, 8))


@pytest.mark.parametrize("orientation", ["RAS", "LIA", "RSA", "PIR"])
def test_a_turned_grid_has_the_same_voxels_along_other_axes(orientation: str) -> None:
    affine = torch.tensor([[1.0, 0.1, 0, -9], [-0.1, 2, 0, 5], [0, 0, 3, 7], [0, 0, 0, 1]], dtype=torch.float64)
    grid = Grid((4, 5, 6), affine)
    turned = turned_grid(grid, orientation)
    assert "".join(nibabel.aff2axcodes(turned.affine.numpy())) == orientation
    values = torch.arange(120.0).view(1, 1, 4, 5, 6)
    seen = resample(values, grid, turned)
    own, wanted = nibabel.io_orientation(grid.affine.numpy()), nibabel.orientations.axcodes2ornt(orientation)
    way = nibabel.orientations.ornt_transform(own, wanted)
    expected = nibabel.orientations.apply_orientation(values[0, 0].numpy(), way)
    # Interpolated in float32, whose numbers near 120 are 8e-6 apart.
    np.testing.assert_allclose(seen[0, 0].numpy(), expected, rtol=0, atol=2e-5)


def test_a_flat_grid_stays_as_it_is_and_other_letters_are_refused() -> None:
    flat = Grid((4, 5, 1), torch.eye(4, dtype=torch.float64), flat=True)
    assert turned_grid(flat, "LIA") is flat
    for wrong in ("RA", "RAX", "RLS", "ras"):
        with pytest.raises(InputError, match=f"orientation is '{wrong}': give a letter each of R or L"):
            turned_grid(flat, wrong)

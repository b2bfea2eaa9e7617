# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from common.checks import InputError
from common.spatial import (
    Grid,
    displacement_to_moving,
    identity_grid,
    resample,
    resample_ddf,
    warp,
    warp_within,
    working_grid,
)
from common.spatial.world import divided_grid


def oblique(spacing: tuple[float, float, float], origin: tuple[float, float, float], degrees: float = 20.0) -> Tensor:
    """Anisotropic voxels turned about two axes, first array axis flipped, last two swapped."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    about_z = torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)
    about_x = torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)
    swapped = torch.tensor([[-1, 0, 0], [0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = about_x @ about_z @ swapped @ torch.diag(torch.tensor(spacing, dtype=torch.float64))
    affine[:3, 3] = torch.tensor(origin, dtype=torch.float64)
    return affine


FIXED = Grid((9, 12, 10), oblique((1.5, 0.8, 2.0), (3.0, -7.0, 11.0)))
MOVING = Grid((14, 11, 13), oblique((1.1, 1.3, 0.9), (6.0, -9.0, 7.0), degrees=-35.0))


def world(grid: Grid, voxels: np.ndarray) -> np.ndarray:
    affine = grid.affine.numpy()
    return voxels @ affine[:3, :3].T + affine[:3, 3]


def positions(grid: Grid) -> np.ndarray:
    return identity_grid(grid.shape, dtype=torch.float64)[0].flatten(1).T.numpy()


def test_displacement_to_moving_agrees_with_points_carried_one_by_one() -> None:
    ddf = torch.randn(1, 3, *FIXED.shape, generator=torch.Generator().manual_seed(0))
    alignment = torch.eye(4, dtype=torch.float64)
    alignment[:3] += 0.1 * torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = displacement_to_moving(MOVING, FIXED, ddf, alignment)[0].flatten(1).T.double().numpy() + positions(FIXED)

    displaced = positions(FIXED) + ddf[0].flatten(1).T.double().numpy()
    aligned = world(FIXED, displaced) @ alignment[:3, :3].numpy().T + alignment[:3, 3].numpy()
    inverse = np.linalg.inv(MOVING.affine.numpy())
    np.testing.assert_allclose(found, aligned @ inverse[:3, :3].T + inverse[:3, 3], atol=2e-5)


def test_on_one_grid_the_displacement_is_the_field_itself() -> None:
    ddf = torch.randn(1, 3, *FIXED.shape)
    torch.testing.assert_close(displacement_to_moving(FIXED, FIXED, ddf), ddf, rtol=0, atol=1e-5)


def test_a_linear_ramp_is_resampled_exactly_whatever_the_headers() -> None:
    slope = np.array([0.3, -0.2, 0.5])
    big = Grid((60, 60, 60), oblique((1.0, 1.1, 0.9), (0.0, 0.0, 0.0), degrees=10.0))
    middle = world(big, np.array([[29.5, 29.5, 29.5]]))[0]
    small = Grid(FIXED.shape, FIXED.affine.clone())
    small.affine[:3, 3] += torch.from_numpy(middle - world(FIXED, (np.array([FIXED.shape]) - 1) / 2)[0])
    image = torch.from_numpy((world(big, positions(big)) @ slope).reshape(1, 1, *big.shape)).float()
    expected = torch.from_numpy((world(small, positions(small)) @ slope).reshape(1, 1, *small.shape)).float()
    torch.testing.assert_close(resample(image, big, small), expected, rtol=0, atol=1e-3)


def test_resampling_to_the_same_grid_changes_nothing() -> None:
    image = torch.rand(1, 2, *FIXED.shape)
    torch.testing.assert_close(resample(image, FIXED, FIXED), image, rtol=0, atol=1e-5)


def test_coarser_voxels_are_means_of_what_they_cover() -> None:
    fine, coarse = torch.eye(4), torch.diag(torch.tensor([4.0, 4.0, 4.0, 1.0]))
    coarse[:3, 3] = 1.5
    image = torch.rand(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(2))
    found = resample(image, Grid((32, 32, 32), fine), Grid((8, 8, 8), coarse))
    means = torch.nn.functional.avg_pool3d(image, 4)
    # Noise is damped as by the mean of 64 voxels; plain linear sampling averages eight.
    assert float(found.std()) == pytest.approx(float(means.std()), rel=0.15)
    assert float(torch.corrcoef(torch.stack([found.flatten(), means.flatten()]))[0, 1]) > 0.8


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
def test_a_constant_millimetre_field_stays_one_on_another_grid(padding_mode: str) -> None:
    millimetres = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    voxels = [torch.linalg.inv(grid.affine[:3, :3]) @ millimetres for grid in (MOVING, FIXED)]
    field = voxels[0].float().view(1, 3, 1, 1, 1).expand(1, 3, *MOVING.shape)
    found = resample_ddf(field, MOVING, FIXED, padding_mode)
    expected = voxels[1].float().view(1, 3, 1, 1, 1).expand_as(found)
    if padding_mode == "border":
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    else:
        inside = resample(torch.ones(1, 1, *MOVING.shape), MOVING, FIXED, outside=0.0).expand_as(found) > 0
        assert bool(inside.any()) and not bool(inside.all())
        far = (displacement_to_moving(MOVING, FIXED)[0, 0] + torch.arange(9.0)[:, None, None]) < -1
        assert bool((found[0, :, far] == 0).all())


def test_a_resampled_field_warps_as_the_original_does() -> None:
    fine = Grid((24, 24, 24), torch.eye(4))
    coarse = Grid((12, 12, 12), torch.tensor([[0, 2, 0, 0.5], [-2, 0, 0, 22.5], [0, 0, 2, 0.5], [0, 0, 0, 1]]))
    grid = identity_grid((24, 24, 24))
    field = 1.5 * torch.sin(grid.flip(1) / 5)
    image = torch.sin(grid[:, :1] / 3) + torch.cos(grid[:, 1:2] / 4)
    back = resample_ddf(resample_ddf(field, fine, coarse), coarse, fine)
    difference = (warp(image, field) - warp(image, back))[..., 4:-4, 4:-4, 4:-4]
    assert float(difference.abs().max()) < 0.03


def test_values_outside_follow_the_rule_of_itk() -> None:
    image = torch.arange(1.0, 6.0).view(1, 1, 5, 1, 1)
    ddf = torch.zeros(1, 3, 5, 1, 1)
    ddf[0, 0, :, 0, 0] = torch.tensor([-0.5, -1.51, 0.25, 1.5, 0.51])
    warped = warp_within(image, ddf, outside=-9.0).flatten()
    torch.testing.assert_close(warped, torch.tensor([1.0, -9.0, 3.25, 5.0, -9.0]))


def test_what_is_outside_does_not_depend_on_half_precision() -> None:
    # 599.6 is beyond the last voxel, but 599.5 in float16.
    ddf = torch.full((1, 3, 600, 1, 1), 0.6, dtype=torch.float16)
    ddf[:, 1:] = 0
    warped = warp_within(torch.ones(1, 1, 600, 1, 1), ddf, outside=-9.0).flatten()
    assert (warped[:-1] == 1).all() and warped[-1] == -9


@pytest.mark.parametrize("spacing", [None, (2.0, 1.0, 0.7)])
def test_the_working_grid_is_nearly_ras_and_covers_the_scan(spacing: tuple[float, float, float] | None) -> None:
    made = working_grid(FIXED, spacing)
    directions = made.affine[:3, :3] / made.affine[:3, :3].norm(dim=0)
    assert bool((directions.diagonal() > 0.8).all())
    assert made.spacing == pytest.approx(spacing or (1.5, 2.0, 0.8))
    corners = torch.cartesian_prod(*[torch.tensor([-0.5, n - 0.5], dtype=torch.float64) for n in FIXED.shape])
    inverse = torch.linalg.inv(made.affine)
    there = torch.from_numpy(world(FIXED, corners.numpy())) @ inverse[:3, :3].T + inverse[:3, 3]
    assert bool((there >= -0.5 - 1e-6).all())
    assert bool((there <= torch.tensor(made.shape) - 0.5 + 1e-6).all())


def test_a_divided_grid_is_where_a_resized_array_has_its_voxels() -> None:
    made = divided_grid(FIXED, (6, 24, 5))
    # The coordinates of the scan's voxels, resized as an image, are those of the new ones; away from the edges, beyond
    # which interpolation has nothing.
    places = torch.from_numpy(world(FIXED, positions(FIXED)).T.reshape(1, 3, *FIXED.shape))
    resized = torch.nn.functional.interpolate(places, size=made.shape, mode="trilinear", align_corners=False)
    expected = torch.from_numpy(world(made, positions(made)).T.reshape(1, 3, *made.shape))
    inner = (..., slice(1, -1), slice(2, -2), slice(1, -1))
    torch.testing.assert_close(resized[inner], expected[inner])
    assert divided_grid(FIXED, FIXED.shape).same_as(FIXED, tolerance=0)


def test_the_working_grid_of_a_ras_scan_with_its_own_spacing_is_its_own_grid() -> None:
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.5, 1.0]))
    affine[:3, 3] = torch.tensor([-5.0, 4.0, 1.0])
    assert working_grid(Grid((7, 8, 9), affine), None).same_as(Grid((7, 8, 9), affine))


def test_a_cropped_grid_keeps_its_place_in_the_world() -> None:
    part = FIXED.cropped((2, 3, 4), (7, 9, 6))
    assert part.shape == (5, 6, 2)
    np.testing.assert_allclose(world(part, np.zeros((1, 3))), world(FIXED, np.array([[2.0, 3.0, 4.0]])))


def test_scipy_agrees_with_a_resampled_image() -> None:
    image = torch.rand(1, 1, *MOVING.shape)
    found = resample(image, MOVING, Grid(MOVING.shape, MOVING.affine @ _shifted(0.3)), outside=0.0)
    coordinates = identity_grid(MOVING.shape)[0].numpy() + 0.3
    expected = map_coordinates(image[0, 0].numpy(), coordinates, order=1, mode="nearest")
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=2e-5)


def _shifted(voxels: float) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = voxels
    return matrix


def test_a_header_that_cannot_be_inverted_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be inverted"):
        Grid((4, 4, 4), torch.diag(torch.tensor([1.0, 0.0, 1.0, 1.0])))
    with pytest.raises(InputError, match="three axes"):
        Grid((4, 4), torch.eye(4))  # type: ignore[arg-type]

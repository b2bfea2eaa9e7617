# SPDX-License-Identifier: Apache-2.0
"""When two grids are one, whatever the size of their voxels."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from common.spatial.places import GRID_TOLERANCE, arrays_apart, voxels_apart
from common.spatial.world import Grid

SHAPE = (40, 44, 36)


def placed(size: float, origin: tuple[float, float, float] = (0.0, 0.0, 0.0), turn: float = 0.0) -> torch.Tensor:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("zx", [turn, 20], degrees=True).as_matrix() * size
    affine[:3, 3] = origin
    return torch.from_numpy(affine)


# Millimetres: nanometres of an electron microscope, a light sheet, a scanner, a head in metres.
@pytest.mark.parametrize("size", [4e-6, 0.001, 0.01, 0.025, 1.0, 50.0, 1000.0])
def test_what_counts_are_voxels(size: float) -> None:
    grid = Grid(SHAPE, placed(size))
    for other, same in (
        (placed(size), True),
        (placed(size, (0.005 * size, 0, 0)), True),
        (placed(size, (0.02 * size, 0, 0)), False),
        (placed(1.0001 * size), True),
        (placed(1.001 * size), False),
        (placed(1.09 * size), False),
        (placed(size, turn=0.1), False),
        (placed(size, (0, 0.9 * size, 0)), False),
    ):
        assert grid.same_as(Grid(SHAPE, other)) == same
        assert Grid(SHAPE, other).same_as(grid) == same
    assert not grid.same_as(Grid((40, 44, 35), placed(size)))


def test_the_distance_is_that_of_the_corners() -> None:
    one, other = placed(2.0, (3, 4, 5)), placed(2.2, (3.5, 4, 4), turn=7)
    ends = np.array([(i, j, k) for i in (0, 39) for j in (0, 43) for k in (0, 35)])
    places = [ends @ affine[:3, :3].numpy().T + affine[:3, 3].numpy() for affine in (one, other)]
    right = np.linalg.norm(places[0] - places[1], axis=1).max() / 2.0
    assert voxels_apart(SHAPE, one, other) == pytest.approx(right, rel=1e-5)
    flat = np.linalg.norm((ends @ np.diag([1, 1, 0])) @ (one - other)[:3, :3].numpy().T, axis=1).max() / 2.0
    moved = other.clone()
    moved[:3, 3] = one[:3, 3]
    assert voxels_apart(SHAPE[:2], one, moved) == pytest.approx(flat, rel=1e-5)


@pytest.mark.parametrize(("size", "origin"), [(0.001, 9000.0), (0.01, 1e5), (0.5, -2e6), (1.0, 123.4567)])
def test_rounding_of_headers_far_from_the_origin_is_none(size: float, origin: float) -> None:
    # A step of single precision at 9 m is a micron: these voxels cannot be told apart by any header.
    affine = placed(size, (origin, -origin / 3, 0.1))
    rounded = affine.float().double()
    step = np.spacing(np.float32(abs(origin)))
    assert Grid(SHAPE, affine).same_as(Grid(SHAPE, rounded), tolerance=0)
    rounded[0, 3] += 2.5 * max(float(step), 0.01 * size)
    assert not Grid(SHAPE, affine).same_as(Grid(SHAPE, rounded))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_what_is_no_place_is_apart_from_everything(value: float) -> None:
    assert voxels_apart(SHAPE, placed(1.0), value * torch.eye(4)) > 1


@pytest.mark.parametrize("size", [4e-6, 1.0, 1e6])
def test_flat_voxels_are_told_from_small_ones(size: float) -> None:
    assert Grid(SHAPE, placed(size)).spacing == pytest.approx((size, size, size))
    with pytest.raises(ValueError, match="cannot be inverted"):
        Grid(SHAPE, placed(size) @ torch.diag(torch.tensor([1, 1e-7, 1, 1], dtype=torch.float64)))


@pytest.mark.parametrize("tilt", [0.05, 0.2, 0.5, 2.0, 20.0])
def test_a_label_map_with_a_qform_lies_on_the_grid_of_its_scan_with_a_sform(tilt: float) -> None:
    shape, generator = (256, 256, 176), np.random.default_rng(0)
    for _ in range(30):
        axis = generator.normal(size=3)
        affine = np.eye(4)
        turn = Rotation.from_rotvec(np.deg2rad(tilt) * axis / np.linalg.norm(axis)).as_matrix()
        affine[:3, :3] = turn @ np.diag([-0.9, 1.0, 1.1])
        affine[:3, 3] = generator.uniform(-120, 120, 3)
        file = nibabel.Nifti1Image(np.broadcast_to(np.float32(0), shape), None)
        file.set_qform(affine, 1)
        file.set_sform(affine, 1)
        forms = [torch.from_numpy(form) for form in (file.get_sform(), file.get_qform())]
        assert arrays_apart(shape, *forms) <= GRID_TOLERANCE
        for change in (torch.diag(torch.tensor([1.001, 1, 1, 1])), torch.eye(4)):
            other = forms[1] @ change.double()
            other[0, 3] += 0.05 * float((change == torch.eye(4)).all())
            assert arrays_apart(shape, forms[0], other) > GRID_TOLERANCE


def test_a_turn_that_a_qform_can_tell_is_a_difference() -> None:
    one, other = placed(1.0), placed(1.0, turn=0.2)
    assert arrays_apart(SHAPE, one, other) == voxels_apart(SHAPE, one, other) > 0.1
    assert arrays_apart(SHAPE, one, one) == 0 and arrays_apart(SHAPE, one, float("nan") * one) == float("inf")

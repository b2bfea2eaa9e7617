# SPDX-License-Identifier: Apache-2.0
"""Headers that turn a scan, by however much: the turn is found, or the result is not trusted."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.alignment.affine import align
from common.alignment.orientation import degrees_between, rigid, rotations
from common.data import alignment as earlier
from common.spatial.world import Grid

BRAIN = Path(__file__).parents[4] / "shared/data/brain/aligned_2mm/imagesTr/MALF_1000_0000.nii.gz"
STRAIGHT = torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0], dtype=torch.float64))
STRAIGHT[:3, 3] = -50


def image_of(points: Tensor) -> Tensor:
    """A body without any symmetry, at world points (3, *)."""
    place = points / torch.tensor([30.0, 38.0, 26.0]).view(3, 1, 1, 1)
    value = torch.sigmoid((1 - place.norm(dim=0)) * 12)
    for number in range(9):
        centre = torch.tensor([math.sin(number * 2.4), math.cos(number * 1.7), math.sin(number * 0.9 + 1)]) * 16
        distance = (points - centre.view(3, 1, 1, 1)).square().sum(0)
        value = value + value * (-0.9) ** number * torch.exp(-distance / 80)
    return value.float()[None]


def world(grid: Grid) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid.shape], indexing="ij")
    return torch.einsum("rc,cijk->rijk", grid.affine[:3, :3], torch.stack(axes)) + grid.affine[:3, 3].view(3, 1, 1, 1)


GRID = Grid((35, 35, 35), STRAIGHT)
BODY = image_of(world(GRID))


def turned(axes: str, degrees: float | list[float], shift: tuple[float, float, float] = (0, 0, 0)) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor(Rotation.from_euler(axes, degrees, degrees=True).as_matrix())
    matrix[:3, 3] = torch.tensor(shift, dtype=torch.float64)
    return matrix


def error_mm(found: Tensor, truth: Tensor, points: Tensor) -> float:
    difference = (found - truth)[:3, :3] @ points.flatten(1) + (found - truth)[:3, 3:]
    return float(difference.norm(dim=0).max())


TURNS = [("z", 90), ("y", 180), ("x", 120), ("xyz", [170, 35, -100])]


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for this body, and fast."""
    monkeypatch.setattr("common.alignment.affine._LEVELS", ((20, 10), (30, 12), (60, 16)))


@pytest.mark.usefixtures("few_points")
@pytest.mark.parametrize(("axes", "degrees"), TURNS)
def test_a_header_that_turns_and_moves_a_body_is_undone(axes: str, degrees: float | list[float]) -> None:
    turn = turned(axes, degrees, (60.0, -35.0, 80.0))
    found = align(BODY, Grid(GRID.shape, turn @ STRAIGHT), BODY, GRID)
    assert found.converged and found.warning is None
    assert error_mm(found.matrix, turn, world(GRID)[:, BODY[0] > 0.5]) < 1.5


@pytest.mark.usefixtures("few_points")
def test_the_path_of_earlier_releases_takes_the_fixed_scan_first() -> None:
    moved = Grid(GRID.shape, turned("z", 30) @ STRAIGHT)
    found, again = align(BODY, moved, BODY, GRID), earlier.align(BODY, GRID, BODY, moved)
    assert torch.equal(again.matrix, found.matrix) and not torch.equal(found.matrix, torch.eye(4).double())


@pytest.mark.usefixtures("few_points")
def test_a_body_that_looks_alike_from_two_sides_is_not_trusted() -> None:
    points = world(GRID)
    mirrored = turned("z", 180)[:3, :3]
    alike = BODY + image_of(torch.einsum("rc,cijk->rijk", mirrored, points))
    turn = turned("z", 180)
    found = align(alike, Grid(GRID.shape, turn @ STRAIGHT), alike, GRID)
    assert not found.converged
    assert found.warning is not None and "turned by 1" in found.warning and "fit about as well" in found.warning


@pytest.mark.usefixtures("few_points")
def test_a_single_slice_keeps_its_header_and_is_not_trusted() -> None:
    plane = GRID.cropped((0, 0, 17), (35, 35, 18))
    image = BODY[..., 17:18].contiguous()
    found = align(image, Grid(plane.shape, turned("z", 180) @ plane.affine), image, plane)
    assert torch.equal(found.matrix, torch.eye(4).double()) and found.similarity_after == found.similarity_before
    assert (
        not found.converged and found.warning is not None and "single slice, so the headers are kept" in found.warning
    )


def test_rotations_are_many_different_ones_with_those_of_the_cube() -> None:
    found = rotations()
    assert found.shape == (272, 3, 3)
    torch.testing.assert_close(found @ found.mT, torch.eye(3).double().expand(272, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(272).double())
    assert len({tuple(turn.flatten().round(decimals=6).tolist()) for turn in found}) == 272
    whole = found[(found - found.round()).abs().amax(dim=(1, 2)) < 1e-9]
    assert len(whole) == 24
    known = Rotation.from_matrix(found.numpy())
    others = Rotation.random(300, random_state=0)
    nearest = [np.degrees((known * other.inv()).magnitude().min()) for other in others]
    assert max(nearest) < 40 and np.mean(nearest) < 20


def test_angles_and_rigid_maps() -> None:
    for degrees in (0, 20, 119.5, 180):
        scaled = turned("y", degrees) @ torch.diag(torch.tensor([1.2, 0.9, 1.0, 1.0]).double())
        assert degrees_between(turned("y", 0), scaled) == pytest.approx(degrees, abs=1e-5)
    turn, here, there = turned("xy", [30, 80])[:3, :3], torch.tensor([1.0, 2, 3]).double(), torch.tensor([9.0, 8, 7])
    matrix = rigid(turn, here, there.double())
    torch.testing.assert_close(matrix[:3, :3] @ here + matrix[:3, 3], there.double())


@pytest.mark.skipif(not BRAIN.is_file(), reason="the real data pack is not beside the repository")
@pytest.mark.parametrize(("axes", "degrees"), [("z", 180), ("xyz", [50, -70, 130])])
def test_a_brain_is_told_from_itself_turned(axes: str, degrees: float | list[float]) -> None:
    file = nibabel.load(BRAIN)
    image = torch.from_numpy(np.asarray(file.dataobj, np.float32))[None]
    grid, turn = Grid(file.shape, torch.from_numpy(file.affine)), turned(axes, degrees)
    moved = Grid(file.shape, turn @ grid.affine)
    found = align(image, moved, image, grid)
    points = world(grid)[:, image[0] > 0]
    assert found.converged and error_mm(found.matrix, turn, points) < 0.5

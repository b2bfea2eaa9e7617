# SPDX-License-Identifier: Apache-2.0
"""Known affine maps are found again, whatever the grids and contrasts; failures are told."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor

from common.alignment.affine import align
from common.alignment.mutual_information import BlockScan, ScanPair
from common.checks import InputError
from common.spatial import warp_labels
from common.spatial.world import Grid, displacement_to_moving

NATIVE = Path(__file__).parents[4] / "shared" / "data" / "brain" / "native"
CENTRE = torch.tensor([10.0, -40.0, 25.0], dtype=torch.float64)


def anatomy(points: Tensor) -> Tensor:
    """An ellipsoid with blobs in it, at any world points (3, *): sharp enough to align, and known everywhere."""
    x = points.double() - CENTRE.view(3, *[1] * (points.ndim - 1))
    radius = ((x / torch.tensor([30.0, 38.0, 32.0]).view(3, *[1] * (points.ndim - 1))) ** 2).sum(0).sqrt()
    value = 0.6 * torch.sigmoid((1 - radius) * 12)
    inside = value.clone()
    for blob in range(12):
        place = torch.tensor([math.sin(blob * 2.4), math.cos(blob * 1.7), math.sin(blob * 0.9 + 1)]) * 18
        distance = (x - place.view(3, *[1] * (points.ndim - 1))).square().sum(0)
        value = value + inside * (-1) ** blob * 0.8 * torch.exp(-distance / 60)
    return value.clamp(min=0)


def world(grid: Grid) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in grid.shape], indexing="ij")
    return torch.einsum("rc,cijk->rijk", grid.affine[:3, :3], torch.stack(axes)) + grid.affine[:3, 3].view(3, 1, 1, 1)


def mapped(matrix: Tensor, points: Tensor) -> Tensor:
    return torch.einsum("rc,c...->r...", matrix[:3, :3], points) + matrix[:3, 3].view(3, *[1] * (points.ndim - 1))


def rotation(axis: int, degrees: float) -> Tensor:
    turn = torch.eye(3, dtype=torch.float64)
    first, second = (k for k in range(3) if k != axis)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn[first, first] = turn[second, second] = cosine
    turn[first, second], turn[second, first] = -sine, sine
    return turn


def about_centre(linear: Tensor, shift: tuple[float, float, float]) -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = linear
    matrix[:3, 3] = CENTRE + torch.tensor(shift, dtype=torch.float64) - linear @ CENTRE
    return matrix


def grid_around(centre: Tensor, shape: tuple[int, int, int], linear: Tensor) -> Grid:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = linear
    affine[:3, 3] = centre - linear @ ((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    return Grid(shape, affine)


def spacing(*mm: float) -> Tensor:
    return torch.diag(torch.tensor(mm, dtype=torch.float64))


STRAIGHT = spacing(2.5, 2.5, 2.5)
OBLIQUE = rotation(0, 20) @ rotation(2, -10) @ spacing(2.0, 3.0, 2.5)
FLIPPED = spacing(-2.5, -2.5, 3.0)[:, [1, 0, 2]]
FIXED = grid_around(CENTRE, (36, 40, 38), STRAIGHT)
GENERAL = (
    rotation(0, 15)
    @ rotation(2, -8)
    @ torch.tensor([[1.1, 0.06, 0.0], [0.0, 0.92, -0.05], [0.0, 0.0, 1.05]], dtype=torch.float64)
)
KNOWN = about_centre(GENERAL, (20.0, -18.0, 12.0))


FIXED_SCAN = anatomy(world(FIXED))[None]


def moving_scan(truth: Tensor, linear: Tensor, shape: tuple[int, int, int] = (44, 42, 40)) -> tuple[Tensor, Grid]:
    """The anatomy carried by ``truth`` to another world, on a grid around it."""
    grid = grid_around(truth[:3, :3] @ CENTRE + truth[:3, 3] + 4, shape, linear)
    return anatomy(mapped(torch.linalg.inv(truth), world(grid)))[None], grid


def error_mm(found: Tensor, truth: Tensor) -> float:
    """Largest distance between two maps inside the object."""
    points = world(FIXED)[:, FIXED_SCAN[0] > 0.3]
    return float((mapped(found, points) - mapped(truth, points)).norm(dim=0).max())


@pytest.fixture
def few_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for this anatomy, and fast."""
    monkeypatch.setattr("common.alignment.affine._LEVELS", ((20, 8), (30, 12), (60, 16)))


@pytest.mark.usefixtures("few_points")
@pytest.mark.parametrize("linear", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_rotation_scale_shear_and_translation_are_found_to_a_fraction_of_a_voxel(linear: Tensor) -> None:
    moving, grid = moving_scan(KNOWN, linear)
    found = align(moving, grid, FIXED_SCAN, FIXED)
    assert found.converged and found.warning is None
    assert found.similarity_after > 0.9 > found.similarity_before
    assert error_mm(found.matrix, KNOWN) < 1.0
    assert error_mm(torch.eye(4, dtype=torch.float64), KNOWN) > 25


@pytest.mark.usefixtures("few_points")
def test_the_matrix_is_that_of_the_scans_however_they_are_stored() -> None:
    moving, grid = moving_scan(KNOWN, OBLIQUE)
    turn = torch.tensor([[0.0, 0, -1, FIXED.shape[0] - 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]).double()
    stored = FIXED_SCAN.permute(0, 2, 3, 1).flip(3)
    other = Grid.of(stored.shape[1:], FIXED.affine @ turn)
    first, second = (align(moving, grid, *fixed).matrix for fixed in ((FIXED_SCAN, FIXED), (stored, other)))
    # Origins are sums of other products.
    torch.testing.assert_close(second, first, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("few_points")
def test_matrix_maps_fixed_world_to_moving_world_in_ras() -> None:
    shift = about_centre(torch.eye(3, dtype=torch.float64), (12.0, -7.0, 5.0))
    moving, grid = moving_scan(shift, FLIPPED)
    found = align(moving, grid, FIXED_SCAN, FIXED)
    torch.testing.assert_close(found.matrix[:3, 3], torch.tensor([12.0, -7.0, 5.0]).double(), atol=0.5, rtol=0)
    assert found.matrix.dtype == torch.float64 and found.matrix[3].tolist() == [0, 0, 0, 1]


@pytest.mark.usefixtures("few_points")
def test_another_contrast_is_aligned_too() -> None:
    moving, grid = moving_scan(KNOWN, OBLIQUE)
    inverted = torch.where(moving > 0.2, 1.3 - moving, moving)
    found = align(inverted * 4000 - 1000, grid, FIXED_SCAN, FIXED)
    assert found.converged
    assert error_mm(found.matrix, KNOWN) < 1.5


@pytest.mark.usefixtures("few_points")
def test_scanners_with_far_origins_are_brought_together() -> None:
    far = about_centre(torch.eye(3, dtype=torch.float64), (700.0, -900.0, 400.0))
    moving, grid = moving_scan(far, STRAIGHT)
    found = align(moving, grid, FIXED_SCAN, FIXED)
    assert found.similarity_before == pytest.approx(0, abs=0.05)
    assert error_mm(found.matrix, far) < 1.0


@pytest.mark.usefixtures("few_points")
def test_an_image_that_covers_a_part_is_aligned_with_the_whole() -> None:
    truth = about_centre(rotation(1, 6), (4.0, -3.0, 5.0))
    whole, grid = moving_scan(truth, STRAIGHT)
    part = FIXED.cropped((0, 0, 12), (36, 40, 30))
    found = align(whole, grid, anatomy(world(part))[None], part)
    assert found.converged
    assert error_mm(found.matrix, truth) < 2.0


def test_aligned_scans_stay_to_a_tenth_of_a_voxel_and_integers_are_taken() -> None:
    image = (FIXED_SCAN * 1000).to(torch.int16)
    found = align(image, FIXED, image, FIXED)
    assert found.converged
    assert error_mm(found.matrix, torch.eye(4, dtype=torch.float64)) < 0.1 * 2.5


@pytest.mark.usefixtures("few_points")
def test_the_same_scans_give_the_same_matrix_on_any_number_of_threads() -> None:
    moving, grid = moving_scan(KNOWN, OBLIQUE)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = align(moving, grid, FIXED_SCAN, FIXED)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    second = align(moving, grid, FIXED_SCAN, FIXED)
    assert torch.equal(first.matrix, second.matrix)
    assert first.similarity_after == second.similarity_after


@pytest.mark.usefixtures("few_points")
def test_noise_is_told_with_the_figure() -> None:
    noise = torch.rand((1, *FIXED.shape), generator=torch.Generator().manual_seed(0))
    found = align(noise, FIXED, FIXED_SCAN, FIXED, fixed_name="a.nii.gz", moving_name="b.nii.gz")
    assert not found.converged
    assert found.warning is not None and "\n" not in found.warning
    assert "b.nii.gz to a.nii.gz did not converge" in found.warning
    assert f"{found.similarity_after:.2f} with the result" in found.warning


@pytest.mark.usefixtures("few_points")
def test_an_implausible_scale_keeps_the_rigid_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.alignment.affine._SCALES", (0.97, 1.03))
    moving, grid = moving_scan(KNOWN, OBLIQUE)
    found = align(moving, grid, FIXED_SCAN, FIXED)
    assert not found.converged
    assert found.warning is not None and "only the rigid part is kept" in found.warning
    torch.testing.assert_close(torch.linalg.svdvals(found.matrix[:3, :3]), torch.ones(3).double())


@pytest.mark.usefixtures("few_points")
def test_stopping_at_the_limit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.alignment.affine._ITERATIONS", 1)
    monkeypatch.setattr("common.alignment.affine._refined.__defaults__", (1,))
    moving, grid = moving_scan(KNOWN, STRAIGHT)
    found = align(moving, grid, FIXED_SCAN, FIXED)
    assert not found.converged
    assert found.warning is not None and "still moving after 1 steps" in found.warning


def test_the_gradient_of_the_information_is_that_of_finite_differences() -> None:
    moving, grid = moving_scan(KNOWN, OBLIQUE)
    pair = ScanPair(BlockScan(moving, grid, 2.5, "moving"), BlockScan(FIXED_SCAN, FIXED, 2.5, "fixed"), 16)
    matrix = KNOWN.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(pair.information(matrix)[0], matrix)
    for row, column in ((0, 3), (1, 3), (2, 3), (0, 1)):
        step = torch.zeros(4, 4, dtype=torch.float64)
        step[row, column] = 0.02 if column == 3 else 0.0005
        change = pair.information(KNOWN + step)[0] - pair.information(KNOWN - step)[0]
        expected = float(change) / (2 * float(step[row, column]))
        assert float(gradient[row, column]) == pytest.approx(expected, rel=0.05, abs=1e-3)


def test_similarity_is_one_for_the_same_scan_and_none_where_scans_do_not_meet() -> None:
    scan = BlockScan(FIXED_SCAN, FIXED, 2.5, "scan")
    pair = ScanPair(scan, scan, 16)
    assert pair.similarity(torch.eye(4, dtype=torch.float64))[0] > 0.97
    assert pair.similarity(about_centre(torch.eye(3, dtype=torch.float64), (500.0, 0.0, 0.0)))[0] < 0.05


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.ones(1, *FIXED.shape), "All voxels of b.nii.gz have the same value"),
        (torch.full((1, *FIXED.shape), math.nan), "not finite in b.nii.gz"),
        (torch.rand(1, 4, 5, 6), r"shape \(1, 4, 5, 6\) was given for b.nii.gz"),
    ],
    ids=["constant", "nan", "shape"],
)
def test_images_that_cannot_be_aligned_are_refused(image: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        align(image, FIXED, FIXED_SCAN, FIXED, moving_name="b.nii.gz")


@pytest.mark.skipif(not NATIVE.is_dir(), reason="the native scans (../shared/data/brain/native) are absent")
def test_native_heads_of_two_people_come_together() -> None:
    def load(person: int, kind: str) -> tuple[Tensor, Grid]:
        image = nib.load(NATIVE / f"MALF_{person}_{kind}.nii.gz")
        return torch.from_numpy(np.asanyarray(image.dataobj).astype(np.int16))[None], Grid(image.shape, image.affine)

    (fixed, fixed_grid), (moving, moving_grid) = load(1107, "t1"), load(1128, "t1")
    found = align(moving, moving_grid, fixed, fixed_grid)
    assert found.converged

    def dice(alignment: Tensor | None) -> float:
        """Of cerebral white matter, both sides."""
        warped = warp_labels(
            load(1128, "labels")[0][None], displacement_to_moving(moving_grid, fixed_grid, alignment=alignment)
        )
        one, other = ((label == 44) | (label == 45) for label in (load(1107, "labels")[0], warped[0]))
        return float(2 * (one & other).sum() / (one.sum() + other.sum()))

    assert dice(None) < 0.4
    assert dice(found.matrix) > 0.65

# SPDX-License-Identifier: Apache-2.0
"""Voxels that coincide by the headers keep their value, whatever rounding makes of them; NumPy indexing tells."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.spatial import Grid, displacement_to_moving, warp_labels, warp_within
from common.spatial.rounding import between_affines, turned_vectors
from common.spatial.transform import Affine, Transform
from common.spatial.world import between_grids

RNG = np.random.default_rng(0)
SHAPE = (9, 8, 5)
LABELS = RNG.integers(1, 200, SHAPE).astype(np.uint8)
FRAMES = [(angles, origin) for angles in ((0.4, 0.3, -0.5), (0, 0.35, 0), (2.0, -1.0, 3.0)) for origin in (9.3, -187.1)]


def header(affine: np.ndarray) -> np.ndarray:
    """As a NIfTI file keeps it: in single precision."""
    return np.asarray(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine).header.get_sform(), np.float64)


def frame(angles: tuple[float, float, float], origin: float, spacing: tuple[float, ...] = (1.4, 0.7, 8)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles).as_matrix() * spacing
    affine[:3, 3] = origin, -0.3 * origin, 77.7
    return header(affine)


def moved(affine: np.ndarray, matrix: np.ndarray, start: tuple[float, ...]) -> np.ndarray:
    """The header of a grid whose voxel x lies at voxel ``matrix @ x + start`` of another."""
    step = np.eye(4)
    step[:3, :3], step[:3, 3] = matrix, start
    return header(affine @ step)


def on_grid(
    labels: np.ndarray, own: np.ndarray, shape: tuple[int, ...], affine: np.ndarray, ddf: Tensor | None = None
) -> np.ndarray:
    i, j, k = labels.shape
    place = displacement_to_moving(Grid((i, j, k), torch.tensor(own)), Grid(shape, torch.tensor(affine)), ddf)  # type: ignore[arg-type]
    return warp_labels(torch.from_numpy(labels.copy())[None, None], place, by_header=True)[0, 0].numpy()


@pytest.mark.parametrize(("angles", "origin"), FRAMES)
@pytest.mark.parametrize("slices", [1, 2, 5])
def test_crops_flips_and_turned_axes_keep_every_label(
    angles: tuple[float, float, float], origin: float, slices: int
) -> None:
    labels, own = LABELS[:, :, :slices], frame(angles, origin)
    assert np.array_equal(on_grid(labels, own, labels.shape, own), labels)
    crop = on_grid(labels, own, (6, 5, slices), moved(own, np.eye(3), (3, 1, 0)))
    assert np.array_equal(crop, labels[3:, 1:6])
    flipped = on_grid(labels, own, labels.shape, moved(own, np.diag([-1, 1, -1]), (8, 0, slices - 1)))
    assert np.array_equal(flipped, labels[::-1, :, ::-1])
    turned = on_grid(labels, own, (8, 9, slices), moved(own, np.eye(3)[[1, 0, 2]], (0, 0, 0)))
    assert np.array_equal(turned, labels.transpose(1, 0, 2))


@pytest.mark.parametrize(("angles", "origin"), FRAMES)
def test_voxels_three_times_as_large_or_small_end_on_the_border(
    angles: tuple[float, float, float], origin: float
) -> None:
    own = frame(angles, origin)
    coarse = on_grid(LABELS[:7, :7], own, (3, 3, 5), moved(own, np.diag([3.0, 3.0, 1.0]), (0, 0, 0)))
    assert np.array_equal(coarse, LABELS[:7:3, :7:3])
    fine = on_grid(LABELS, own, (25, 22, 5), moved(own, np.diag([1 / 3, 1 / 3, 1.0]), (0, 0, 0)))
    nearest = (np.arange(25) + 1) // 3, (np.arange(22) + 1) // 3
    assert np.array_equal(fine, LABELS[nearest[0]][:, nearest[1]])


@pytest.mark.parametrize(("angles", "origin"), FRAMES)
def test_halves_round_up_and_images_reach_half_a_voxel_further(
    angles: tuple[float, float, float], origin: float
) -> None:
    own = frame(angles, origin)
    coarse = moved(own, np.diag([2.0, 1.0, 1.0]), (0.5, 0, 0))
    assert np.array_equal(on_grid(LABELS, own, (4, 8, 5), coarse), LABELS[1:9:2])
    image = torch.from_numpy(LABELS.astype(np.float32))[None, None]
    grids = Grid(SHAPE, torch.tensor(own)), Grid((10, 8, 5), torch.tensor(moved(own, np.eye(3), (-0.5, 0, 0))))
    found = warp_within(image, displacement_to_moving(*grids), outside=-9.0)[0, 0].numpy()
    line = np.concatenate([LABELS[:1], LABELS, LABELS[-1:]]).astype(np.float32)
    np.testing.assert_allclose(found, (line[:-1] + line[1:]) / 2, atol=1e-3)


def test_a_header_that_was_written_with_three_digits_is_near_enough() -> None:
    own = frame((0.4, 0.3, -0.5), 9.3, (1.0, 1.0, 1.0))
    crop = moved(own, np.eye(3), (3, 1, 0))
    crop[:3, 3] = crop[:3, 3].round(3)
    assert np.array_equal(on_grid(LABELS, own, (6, 7, 5), crop), LABELS[3:, 1:])


def test_what_lies_outside_by_more_than_rounding_stays_outside() -> None:
    own = frame((0.4, 0.3, -0.5), 9.3)
    for shift, kept in ((2e-4, True), (4e-3, False)):
        found = on_grid(LABELS, own, SHAPE, moved(own, np.eye(3), (0, 0, shift)))
        assert np.array_equal(found[..., :-1], LABELS[..., :-1])
        assert np.array_equal(found[..., -1], LABELS[..., -1] if kept else 0 * LABELS[..., -1])


def test_elsewhere_the_nearest_voxel_is_scipys() -> None:
    own, other = frame((0.4, 0.3, -0.5), 9.3, (1.0, 1.2, 1.5)), frame((0.1, -0.3, 0.2), 8.0, (0.9, 1.1, 1.3))
    matrix = np.linalg.inv(own) @ other
    points = np.stack(np.meshgrid(*map(np.arange, (12, 11, 10)), indexing="ij")).reshape(3, -1)
    expected = map_coordinates(LABELS, matrix[:3, :3] @ points + matrix[:3, 3:], order=0, mode="constant")
    found = on_grid(LABELS, own, (12, 11, 10), other)
    assert (expected > 0).mean() > 0.05
    assert np.array_equal(found.ravel(), expected)
    np.testing.assert_allclose(between_affines(torch.tensor(own), torch.tensor(other)), matrix, rtol=0, atol=1e-12)


def test_one_grid_is_the_identity_though_two_programs_wrote_its_header() -> None:
    own = frame((0.4, 0.3, -0.5), 9.3)
    other = own.copy()
    other[:3] += 4e-4 * RNG.uniform(-1, 1, (3, 4)) * [[0.01, 0.01, 0.01, 1]]
    grids = Grid(SHAPE, torch.tensor(own)), Grid(SHAPE, torch.tensor(other))
    assert torch.equal(between_grids(*grids), torch.eye(4, dtype=torch.float64))
    assert torch.equal(between_grids(*grids, torch.eye(4)), torch.eye(4, dtype=torch.float64))


def test_displacements_along_two_axes_leave_the_third_alone() -> None:
    own = frame((0.4, 0.3, -0.5), 9.3)
    voxels = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    voxels[2] = 0
    voxels[1, ::2] = -3
    voxels[0, ::3] = 0.5
    linear = torch.tensor(own[:3, :3])
    # As a file keeps them: millimetres in single precision.
    found = turned_vectors(torch.linalg.inv(linear), (linear @ voxels.double()).float())
    for row, step, value in ((2, 1, 0), (1, 2, -3), (0, 3, 0.5)):
        assert bool((found[row, ::step] == value).all())
    torch.testing.assert_close(found, voxels, rtol=0, atol=2e-6)


def test_entries_that_headers_cannot_tell_from_whole_or_half_ones_are_those() -> None:
    for angles, origin in FRAMES:
        own = frame(angles, origin)
        step = np.array([[0, -2, 0, 300], [0.5, 0, 0, -0.25], [0, 0, 1, -7], [0, 0, 0, 1]])
        found = between_affines(torch.tensor(own), torch.tensor(header(own @ step)))
        assert np.array_equal(found.numpy(), step)


def test_a_position_that_was_summed_up_in_single_precision_is_still_a_half() -> None:
    label = torch.arange(1, 9).view(1, 1, 8, 1).expand(1, 1, 8, 2)
    for noise in (-3e-6, 0.0, 3e-6):
        ddf = torch.zeros(1, 2, 4, 2, dtype=torch.float64)
        ddf[:, 0] = 1.5 + noise
        assert warp_labels(label, ddf, by_header=True)[0, 0, :, 0].tolist() == [3, 4, 5, 6]
    edge = torch.full((1, 2, 1, 2), -0.5 - 3e-6)
    edge[:, 1] = 0
    assert (warp_within(label.float(), edge, outside=-9.0) == 1).all()


def test_a_quarter_turn_in_the_plane_of_oblique_slices_and_its_inverse_lose_no_slice() -> None:
    labels = LABELS[:8, :8]
    own = frame((0.4, 0.3, -0.5), 9.3, (1.4, 1.4, 8))
    inside = np.eye(4)
    inside[:2, :2], inside[:2, 3] = [[0, -1], [1, 0]], (7, 0)
    turn = Affine(torch.tensor(own @ inside @ np.linalg.inv(own)))
    grid = Grid((8, 8, 5), torch.tensor(own))
    there = on_grid(labels, own, labels.shape, own, Transform((turn,)).ddf(grid))
    # Voxel (i, j) takes its label from (7 - j, i).
    assert np.array_equal(there, labels[::-1].transpose(1, 0, 2))
    for chain in ((turn, turn.inverse()), (turn.inverse(), turn), (turn,) * 4):
        back = on_grid(labels, own, labels.shape, own, Transform(chain).ddf(grid))
        assert np.array_equal(back, labels)

# SPDX-License-Identifier: Apache-2.0
"""Errors of points and of landmark volumes, and the reader of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass, map_coordinates
from torch import Tensor

from common.checks import InputError
from common.io.landmarks import read_landmarks
from common.metrics import tre_l2r, tre_lumir
from common.spatial import identity_grid

SHAPES = [(13, 11), (9, 11, 10)]


def random(seed: int, shape: tuple[int, ...], points: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """A field (2, d, *shape) and points (2, points, d) inside the volume, twice."""
    generator = torch.Generator().manual_seed(seed)
    extent = torch.tensor(shape, dtype=torch.float64) - 1
    fixed, moving = torch.rand(2, 2, points, len(shape), generator=generator, dtype=torch.float64) * extent
    return torch.randn(2, len(shape), *shape, generator=generator), fixed, moving


@pytest.mark.parametrize("shape", SHAPES)
def test_point_errors_are_those_of_a_loop_over_points(shape: tuple[int, ...]) -> None:
    ddf, fixed, moving = random(0, shape)
    spacing = [0.7, 1.5, 2.0][: len(shape)]
    expected = np.empty((2, 6))
    for b, n in np.ndindex(2, 6):
        x = fixed[b, n].numpy()
        u = [map_coordinates(c.double().numpy(), x[:, None], order=3)[0] for c in ddf[b]]
        expected[b, n] = np.linalg.norm((x + u - moving[b, n].numpy()) * spacing)
    errors = tre_l2r(ddf, moving, fixed, spacing)
    assert errors.dtype == torch.float64
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_field_that_leads_to_the_moving_points_has_no_error(shape: tuple[int, ...]) -> None:
    """A cubic spline reproduces a quadratic field exactly, away from the border where SciPy mirrors."""
    ddf = 1e-2 * (identity_grid(shape, dtype=torch.float64) - 4)
    fixed = 4 + 0.5 * random(1, tuple([3] * len(shape)))[1][:1]
    errors = tre_l2r(ddf, fixed + 1e-2 * (fixed - 4), fixed, None)
    assert errors.max() < 1e-4
    assert tre_l2r(None, fixed, fixed).max() == 0


def test_without_a_field_the_error_is_the_distance_of_the_points() -> None:
    ddf, fixed, moving = random(2, (9, 11, 10))
    before = tre_l2r(None, moving, fixed, [2, 2, 2])
    torch.testing.assert_close(before, 2 * (fixed - moving).norm(dim=2))
    torch.testing.assert_close(tre_l2r(0 * ddf, moving, fixed, [2, 2, 2]), before)


def test_a_point_outside_the_volume_is_not_displaced() -> None:
    outside = torch.tensor([[[-1.0, 3.0]]])
    assert tre_l2r(torch.ones(1, 2, 8, 8), outside, outside) == 0


@pytest.mark.parametrize(
    ("points", "spacing", "sentence"),
    [
        ((1, 4, 2), None, "do not belong to a field"),
        ((2, 4, 3), None, "do not belong to a field"),
        ((4, 3), None, "must be"),
        ((1, 4, 3), [1.0, 2.0], "3 positive voxel sizes"),
        ((1, 4, 3), [1.0, 2.0, 0.0], "3 positive voxel sizes"),
    ],
)
def test_points_that_do_not_fit_are_refused(
    points: tuple[int, ...], spacing: list[float] | None, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tre_l2r(torch.zeros(1, 3, 5, 5, 5), torch.zeros(points), torch.zeros(points), spacing)


def landmarks(shape: tuple[int, ...], places: list[tuple[int, ...]]) -> Tensor:
    """(1, 1, *shape); landmark n covers two voxels, from ``places[n]`` along the first axis."""
    volume = torch.zeros(1, 1, *shape, dtype=torch.int16)
    for value, (first, *rest) in enumerate(places, start=1):
        for index in (first, first + 1):
            volume[(0, 0, index, *rest)] = 10 * value
    return volume


@pytest.mark.parametrize("shape", SHAPES)
def test_centroid_errors_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    fixed = landmarks(shape, [(1,) * len(shape), (4,) * len(shape)])
    moving = landmarks(shape, [(2,) * len(shape), (4, 3, 5)[: len(shape)]])
    centroids = [center_of_mass(v[0, 0].numpy(), v[0, 0].numpy(), [10, 20]) for v in (fixed, moving)]
    spacing = [2.0, 1.0, 0.5][: len(shape)]
    expected = np.linalg.norm((np.array(centroids[0]) - centroids[1]) * spacing, axis=1).mean()
    assert tre_lumir(moving, fixed, None, spacing).tolist() == pytest.approx([expected])
    zero = torch.zeros(1, len(shape), *shape)
    assert tre_lumir(moving, fixed, zero, spacing).tolist() == pytest.approx([expected])


def test_a_field_that_shifts_the_volumes_onto_each_other_has_no_error() -> None:
    fixed, moving = landmarks((9, 9, 9), [(1, 2, 3), (5, 5, 5)]), landmarks((9, 9, 9), [(2, 2, 3), (6, 5, 5)])
    ddf = torch.zeros(1, 3, 9, 9, 9)
    ddf[:, 0] = 1
    assert tre_lumir(moving, fixed, ddf).tolist() == [0]
    batch = tre_lumir(moving.repeat(2, 1, 1, 1, 1), fixed.repeat(2, 1, 1, 1, 1), torch.cat([ddf, 0 * ddf]))
    assert batch.tolist() == [0, 1]


def test_a_landmark_that_warping_loses_makes_the_error_nan() -> None:
    fixed = landmarks((9, 9), [(1, 2), (5, 5)])
    far = torch.full((1, 2, 9, 9), 100.0)
    assert tre_lumir(fixed, fixed, far).isnan().all()
    assert tre_lumir(landmarks((9, 9), [(1, 2)]), fixed, None).isnan().all()
    assert tre_lumir(fixed, 0 * fixed, None).isnan().all()
    assert tre_lumir(fixed, landmarks((9, 9), [(1, 2)]), None).tolist() == [0], "more landmarks do no harm"


def test_volumes_that_are_no_labels_are_refused() -> None:
    volume = landmarks((9, 9), [(1, 2)])
    with pytest.raises(InputError, match="volumes .* of integers"):
        tre_lumir(volume, volume.float(), None)
    with pytest.raises(InputError, match=r"\(1, 1, 8, 9\)"):
        tre_lumir(volume[:, :, 1:], volume, None)


def test_real_lung_landmarks_have_the_known_error_before_registration() -> None:
    folder = Path(__file__).resolve().parents[4] / "shared" / "data" / "lung" / "l2r_lungct"
    files = sorted(folder.glob("landmarks_LungCT_0001_*.csv"))
    if len(files) != 2:
        pytest.skip(f"no landmarks of case 0001 in {folder}")
    fixed, moving = (read_landmarks(file)[None] for file in files)
    assert tre_l2r(None, moving, fixed, [1.75, 1.25, 1.75]).mean().item() == pytest.approx(20.180, abs=1e-3)

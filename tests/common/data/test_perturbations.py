# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.data import perturbations
from common.data.perturbations import PERTURBATIONS
from common.io.images import Image
from common.spatial import resample

DIMS = (2, 3)


def scan_of(dims: int) -> Image:
    """A blob of values from 2 to 3 on background 0, on an oblique grid whose last axis runs down."""
    rng = np.random.default_rng(0)
    array = np.zeros((20, 18, 24)[:dims], np.float32)
    inside = (slice(3, 17), slice(4, 14), slice(2, 22))[:dims]
    array[inside] = 2 + rng.random(array[inside].shape)
    affine = np.array([[2, 0.1, 0, -7], [-0.1, 2, 0, 5], [0, 0, -1.5, 40], [0, 0, 0, 1]])
    return Image(array, affine, "scan")


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_the_same_seed_gives_the_same_scan_and_leaves_the_given_one(name: str, dims: int) -> None:
    scan, untouched = scan_of(dims), scan_of(dims)
    change = PERTURBATIONS[name]
    once, again = (change.apply(scan, 5) for _ in range(2))
    assert np.array_equal(once.array, again.array) and np.array_equal(once.affine, again.affine)
    assert np.array_equal(scan.array, untouched.array) and np.array_equal(scan.affine, untouched.affine)
    assert once.array.ndim == dims and np.isfinite(once.array).all()
    same = once.array.shape == scan.array.shape and np.allclose(once.array, scan.array)
    assert (same and np.allclose(once.affine, scan.affine)) == (name == "as they are")
    # A label map lies where its scan does: all of it, voxel by voxel.
    label = change.of_label(scan, 5)
    assert np.array_equal(label.array, scan.array) and (np.allclose(label.affine, scan.affine) != change.moves)


@pytest.mark.parametrize("dims", DIMS)
def test_a_turn_is_a_rotation_about_the_centre_by_the_angle(dims: int) -> None:
    scan = scan_of(dims)
    pose = perturbations.turned(scan, 3, 10).affine @ np.linalg.inv(scan.affine)
    linear = pose[:3, :3]
    # Entries of at most 1 in float64.
    np.testing.assert_allclose(linear @ linear.T, np.eye(3), atol=1e-12)
    assert np.degrees(np.arccos((np.trace(linear) - 1) / 2)) == pytest.approx(10)
    centre = scan.affine @ [*((n - 1) / 2 for n in scan.grid.shape), 1]
    # Millimetres, tens of them, in float64 and through an inverse.
    np.testing.assert_allclose((pose @ centre)[:dims], centre[:dims], atol=1e-9)
    assert dims == 3 or np.allclose(linear[2], [0, 0, 1])
    other = perturbations.turned(scan, 4, 10).affine
    assert np.allclose(other, pose @ scan.affine) == (dims == 2)


@pytest.mark.parametrize("dims", DIMS)
def test_a_shift_has_its_length(dims: int) -> None:
    scan = scan_of(dims)
    way = perturbations.shifted(scan, 3, 5).affine - scan.affine
    assert np.linalg.norm(way[:, 3]) == pytest.approx(5) and not way[:, :3].any() and not way[dims:].any()
    assert not np.allclose(perturbations.shifted(scan, 4, 5).affine, scan.affine + way)


def test_intensities_are_those_of_another_scale() -> None:
    scan = scan_of(3)
    # 99.9 % of the blob's values, which are spread evenly from 2 to 3, lie below 2.999.
    expected = 3 * scan.array + 2.999
    # The values are drawn: so far from 2.999 may the one of that rank lie.
    np.testing.assert_allclose(perturbations.rescaled(scan, 0, 3, 1).array, expected, atol=2e-3)


@pytest.mark.parametrize("dims", DIMS)
def test_bias_is_smooth_and_stays_within_its_bounds(dims: int) -> None:
    scan = scan_of(dims)
    there = scan.array > 0
    changed = perturbations.biased(scan, 1).array
    field = np.where(there, changed, 1) / np.where(there, scan.array, 1)
    assert field[there].min() == pytest.approx(0.8) and field[there].max() == pytest.approx(1.2)
    assert not changed[~there].any()
    inside = (slice(3, 17), slice(4, 14), slice(2, 22))[:dims]
    # From 0.8 to 1.2 and back within the six voxels between two of the coarse numbers would be 0.13 a voxel.
    assert all(np.abs(np.diff(field[inside], axis=axis)).max() < 0.14 for axis in range(dims))


def test_noise_is_rician_and_leaves_the_background() -> None:
    scan = scan_of(3)
    changed = perturbations.noisy(scan, 1).array
    there = scan.array > 0
    assert not changed[~there].any()
    error, sigma = (changed - scan.array)[there], 0.09 * 2.999
    # Of 2800 voxels: mean and deviation of the Rician distribution, for values far above the noise; three times their
    # own standard errors.
    bias = float(np.mean(np.hypot(scan.array[there], sigma) - scan.array[there]))
    assert error.mean() == pytest.approx(bias, abs=3 * sigma / math.sqrt(2800))
    assert error.std() == pytest.approx(sigma, rel=3 / math.sqrt(2 * 2800))
    assert not np.array_equal(perturbations.noisy(scan, 2).array, changed)


def test_cut_takes_the_lowest_fifth_whichever_way_the_axis_runs() -> None:
    scan = scan_of(3)
    flipped = Image(
        scan.array[..., ::-1], scan.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 23], [0, 0, 0, 1]])
    )
    for one in (scan, flipped):
        part = perturbations.cut(one, 0)
        # 20 slices of 1.5 mm from 40 - 2 * 1.5 down: what lies above 37.75 - 24 mm stays.
        assert part.array.shape == (20, 18, 18)
        heights = [(part.affine @ [0, 0, k, 1])[2] for k in (0, 17)]
        assert sorted(heights) == pytest.approx([40 - 17 * 1.5, 40])
        whole = resample(torch.from_numpy(one.array.copy())[None, None], one.grid, part.grid)[0, 0]
        # Interpolated at voxels themselves, whose indices come from millimetres in float32.
        np.testing.assert_allclose(part.array, whole.numpy(), atol=1e-5)
    flat = scan_of(2)
    assert np.array_equal(perturbations.cut(flat, 0).array, flat.array[:, 6:])


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("size", [1.0, 3.0])
def test_voxels_have_their_size_and_cover_the_scan(size: float, dims: int) -> None:
    scan = scan_of(dims)
    changed = perturbations.with_voxels(scan, 0, size)
    assert changed.grid.spacing[:dims] == pytest.approx([size] * dims)
    extent = [n * length for n, length in zip(scan.grid.shape, scan.grid.spacing, strict=True)][:dims]
    assert all(0 <= n * size - e < size for n, e in zip(changed.array.shape, extent, strict=True))
    # What is linear in the world is found again at each voxel; near the border the blur sees its end.
    slope = np.array([1.0, 2.0, 0.5][:dims])

    def linear(image: Image) -> np.ndarray:
        index = np.indices(image.array.shape).reshape(dims, -1)
        return (slope @ (image.affine[:dims, :dims] @ index + image.affine[:dims, 3:])).reshape(image.array.shape)

    ramp = Image(linear(scan).astype(np.float32), scan.affine)
    found, margin = perturbations.with_voxels(ramp, 0, size), round(6 / size)
    inner = (slice(margin, -margin),) * dims
    # A ramp of values up to a hundred in float32, which a blur and an interpolation leave as it is.
    np.testing.assert_allclose(found.array[inner], linear(found)[inner], atol=1e-4)


def test_a_scan_of_one_value_is_refused() -> None:
    with pytest.raises(InputError, match="one value"):
        perturbations.noisy(Image(np.ones((4, 4, 4)), np.eye(4)), 0)

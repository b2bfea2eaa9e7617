# SPDX-License-Identifier: Apache-2.0
"""Surface distances against a brute-force search over all pairs of surface elements."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate, gaussian_filter

from common.checks import InputError
from common.metrics import (
    average_surface_distance,
    hausdorff_per_label,
    hd95_l2r,
    label_surface_distances,
    neighbour_kernel,
    surface_dice,
    surface_distances,
    surface_element_areas,
)
from common.metrics.surface_elements import distances_to, neighbour_codes


def blob(shape: tuple[int, ...], seed: int, threshold: float = 0.5) -> torch.Tensor:
    smooth = gaussian_filter(np.random.RandomState(seed).rand(*shape), 2.0, mode="constant")
    return torch.from_numpy(smooth > np.quantile(smooth, threshold))


def brute_force(first: torch.Tensor, second: torch.Tensor, spacing: tuple[float, ...]) -> list[tuple[np.ndarray, ...]]:
    elements = []
    for mask in (first, second):
        padded = np.pad(mask.numpy().astype(np.int64), 1)
        codes = correlate(padded, neighbour_kernel(mask.ndim), mode="constant")
        surface = (codes != 0) & (codes != 2 ** (2**mask.ndim) - 1)
        elements.append((np.argwhere(surface) * spacing, surface_element_areas(spacing)[codes[surface]]))
    results: list[tuple[np.ndarray, ...]] = []
    for one, other in (elements, elements[::-1]):
        distances = np.sqrt(((one[0][:, None] - other[0][None]) ** 2).sum(-1)).min(1)
        results.append((distances, one[1]))
    return results


@pytest.mark.parametrize(
    "shape, spacing", [((14, 17), (1.5, 0.7)), ((9, 10, 8), (1, 1, 1)), ((9, 10, 8), (1.8, 0.9, 5.0))]
)
@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.3, 0.97)])
def test_distances_and_areas_equal_those_over_all_pairs_of_elements(
    shape: tuple[int, ...], spacing: tuple[float, ...], thresholds: tuple[float, float]
) -> None:
    first, second = blob(shape, 0, thresholds[0]), blob(shape, 1, thresholds[1])
    found = surface_distances(first, second, spacing)
    for (distances, areas), d, a in zip(brute_force(first, second, spacing), found.distances, found.areas, strict=True):
        np.testing.assert_allclose(d, distances, rtol=1e-12)
        np.testing.assert_allclose(a, areas, rtol=1e-12)


def test_far_elements_are_found_by_the_tree_and_near_ones_by_their_offset() -> None:
    elements, points = np.zeros((30, 20, 25), bool), np.zeros((30, 20, 25), bool)
    elements[2, 3, 4] = elements[20, 10, 10] = True
    points[2, 3, 4] = points[2, 4, 5] = points[29, 19, 24] = points[20, 13, 10] = True
    expected = [0, math.sqrt(0.5**2 + 2**2), 1.5, math.sqrt(81 + 4.5**2 + 28**2)]
    assert distances_to(elements, points, (1.0, 0.5, 2.0)).tolist() == pytest.approx(expected)


def test_hausdorff_average_and_surface_dice_follow_from_the_elements() -> None:
    first, second = blob((9, 10, 8), 0), blob((9, 10, 8), 3, 0.8)
    spacing = (1.0, 2.0, 0.5)
    sides = brute_force(first, second, spacing)
    found = surface_distances(first, second, spacing)
    quantiles = []
    for distances, areas in sides:
        pairs = sorted(zip(distances.tolist(), areas.tolist(), strict=True))
        covered = 0.0
        for distance, area in pairs:
            covered += area / areas.sum()
            if covered >= 0.95:
                quantiles.append(distance)
                break
    assert found.hausdorff() == pytest.approx(max(quantiles), rel=1e-12)
    assert found.hausdorff(1.0) == pytest.approx(max(d.max() for d, _ in sides), rel=1e-12)
    assert found.average() == pytest.approx([(d * a).sum() / a.sum() for d, a in sides], rel=1e-12)
    within = sum(a[d <= 1.0].sum() for d, a in sides) / sum(a.sum() for _, a in sides)
    assert found.surface_dice(1.0) == pytest.approx(within, rel=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.2, 3.0)])
def test_element_areas_equal_those_of_monais_table(spacing: tuple[float, ...]) -> None:
    utils = pytest.importorskip("monai.metrics.utils")
    accessor = getattr(utils, "_get_neighbour_code_to_normals_table", None)
    if accessor is None:
        pytest.skip("this MONAI has no such table")
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    expected = np.linalg.norm(accessor().double().numpy() * faces, axis=-1).sum(-1)
    np.testing.assert_allclose(surface_element_areas(spacing), expected, atol=1e-14)


def test_flat_faces_have_the_area_of_the_voxel_faces() -> None:
    box = torch.zeros(12, 12, 12, dtype=torch.bool)
    box[1:11, 1:11, 1:11] = True
    codes = neighbour_codes(box.numpy())
    areas = surface_element_areas((2.0, 3.0, 5.0))
    face = codes[1, 2:10, 2:10]
    assert areas[face] == pytest.approx(np.full(face.shape, 15.0))


def test_contour_of_a_rectangle_is_its_perimeter_less_the_cut_corners() -> None:
    rectangle = torch.ones(5, 7, dtype=torch.bool)
    found = surface_distances(rectangle, rectangle, (2.0, 3.0))
    straight, corner = 2 * (4 * 2.0 + 6 * 3.0), 4 * 0.5 * math.hypot(2, 3)
    assert found.areas[0].sum() == pytest.approx(straight + corner)


def test_translated_box_is_as_far_away_as_it_was_moved() -> None:
    fixed = torch.zeros(1, 1, 24, 20, 22, dtype=torch.uint8)
    fixed[..., 4:9, 4:12, 4:12] = 3
    moved = torch.roll(fixed, 7, dims=2)
    assert hausdorff_per_label(moved, fixed, [3], moved, fraction=1).item() == 7
    assert hausdorff_per_label(moved, fixed, [3], moved, (0.5, 1, 1), fraction=1).item() == 3.5
    assert hd95_l2r(fixed, fixed, [3], fixed).item() == 0
    assert surface_dice(fixed, fixed, [3], 0.0, fixed).item() == 1
    assert average_surface_distance(fixed, fixed, [3], fixed).tolist() == [[[0, 0]]]


def test_a_label_inside_its_box_gives_the_same_as_the_whole_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    fixed, warped = (torch.randint(0, 4, (2, 1, 9, 8, 7), generator=generator) for _ in range(2))
    table = hd95_l2r(warped, fixed, [0, 2, 3], warped, (1.0, 2.0, 1.5))
    for b in range(2):
        for k, label in enumerate([0, 2, 3]):
            whole = surface_distances(fixed[b, 0] == label, warped[b, 0] == label, (1.0, 2.0, 1.5))
            assert table[b, k].item() == whole.hausdorff()


def test_missing_labels_are_nan_and_a_lost_one_is_infinite_or_taken_from_moving() -> None:
    fixed, moving, warped = (torch.zeros(1, 1, 9, 9, dtype=torch.uint8) for _ in range(3))
    fixed[..., 2:4, 2:4], fixed[..., 6:8, 6:8], moving[..., 2:4, 3:5], warped[..., 7:9, 0:3] = 1, 2, 1, 3
    assert math.isnan(hd95_l2r(warped, fixed, [2], moving).item())
    assert math.isnan(hd95_l2r(warped, fixed, [3], moving).item())
    assert hd95_l2r(warped, fixed, [1], moving).item() == math.inf
    assert (
        hd95_l2r(warped, fixed, [1], moving, vanished="moving").item()
        == hd95_l2r(moving, fixed, [1], moving).item()
        == 1
    )
    assert average_surface_distance(warped, fixed, [1], moving).isnan().all()
    assert surface_dice(warped, fixed, [1], 1.0, moving).isnan().all()
    assert label_surface_distances(warped, fixed, [2], moving) == [[None]]


def test_moving_labels_may_lie_on_another_grid() -> None:
    fixed = torch.randint(0, 3, (2, 1, 6, 5, 7), generator=torch.Generator().manual_seed(0))
    moving = torch.ones(2, 1, 3, 3, 3, dtype=torch.uint8)
    expected = hd95_l2r(fixed.flip(2), fixed, [1, 2])
    expected[:, 1] = math.nan
    torch.testing.assert_close(hd95_l2r(fixed.flip(2), fixed, [1, 2], moving), expected, equal_nan=True)
    with pytest.raises(InputError, match="on one grid"):
        hd95_l2r(fixed, fixed, [1], moving, vanished="moving")


def test_empty_masks_are_infinitely_far_apart() -> None:
    empty = torch.zeros(4, 4, 4)
    assert surface_distances(empty, empty).hausdorff() == math.inf
    assert surface_distances(empty, torch.ones(4, 4, 4)).hausdorff() == math.inf


def test_bad_input_is_refused_in_words() -> None:
    fixed = torch.zeros(1, 1, 5, 5, 5, dtype=torch.uint8)
    with pytest.raises(InputError, match="3 positive voxel sizes"):
        hd95_l2r(fixed, fixed, [1], spacing=(1, 1))
    with pytest.raises(InputError, match="3 positive voxel sizes"):
        hd95_l2r(fixed, fixed, [1], spacing=(1, 1, 0))
    with pytest.raises(InputError, match="together with moving labels"):
        hd95_l2r(fixed, fixed, [1], vanished="moving")
    with pytest.raises(InputError, match="they must be one shape"):
        surface_distances(fixed[0, 0], fixed[0, 0, :-1])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_of_a_single_slice_the_contours_are_compared(axis: int) -> None:
    fixed, warped = (torch.zeros(1, 1, 24, 20, dtype=torch.uint8) for _ in range(2))
    fixed[..., 4:12, 5:15], warped[..., 7:15, 5:15] = 1, 1
    slices = [label.unsqueeze(2 + axis) for label in (warped, fixed)]
    spacing = [1.5, 0.5]
    spacing.insert(axis, 8.0)
    # Squares three voxels apart; the faces of the slice, which lie upon each other, would make it 1.5.
    assert hd95_l2r(slices[0], slices[1], [1], spacing=spacing).item() == 4.5
    found = surface_distances(slices[0][0, 0], slices[1][0, 0], spacing)
    expected = surface_distances(warped[0, 0], fixed[0, 0], (1.5, 0.5))
    assert found.average() == expected.average() and found.surface_dice(1) == expected.surface_dice(1)


def test_a_label_in_one_slice_of_a_volume_keeps_its_surface() -> None:
    fixed, warped = (torch.zeros(1, 1, 24, 20, 5, dtype=torch.uint8) for _ in range(2))
    fixed[..., 4:12, 5:15, 2], warped[..., 4:12, 5:15, 3] = 1, 1
    assert hd95_l2r(warped, fixed, [1], spacing=(1.5, 0.5, 8.0)).item() == 8

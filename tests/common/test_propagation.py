# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from common.checks import InputError
from common.propagation import Atlas, Propagation, agreement, correlation, fuse, local_similarity, propagate


def _votes_by_loop(labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Textbook: per voxel the label with the largest sum of weights, of equal ones the smallest."""
    fused, share = np.zeros(labels.shape[1:], labels.dtype), np.zeros(labels.shape[1:])
    for place in np.ndindex(labels.shape[1:]):
        here: Any = (slice(None), *place)
        sums = {
            value: sum(w for v, w in zip(labels[here], weights[here], strict=True) if v == value)
            for value in sorted(set(labels[here].tolist()))
        }
        fused[place] = max(sums, key=lambda value: (sums[value], -value))
        share[place] = sums[fused[place]] / sum(sums.values())
    return fused, share


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5)])
@pytest.mark.parametrize("weighted", [True, False])
def test_votes_are_counted_as_in_the_textbook(shape: tuple[int, ...], weighted: bool) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 3, (4, *shape)).astype(np.int16)
    weights = random.uniform(0.1, 1, (4, *shape)).astype(np.float32) if weighted else np.ones((4, *shape), np.float32)
    given = list(torch.from_numpy(weights)) if weighted else None
    label, confidence = fuse(list(torch.from_numpy(labels)), given)
    expected, share = _votes_by_loop(labels, weights)
    np.testing.assert_array_equal(label.numpy(), expected)
    # Sums of float32.
    np.testing.assert_allclose(confidence.numpy(), share, rtol=1e-6)
    assert label.dtype == torch.int16


def test_one_atlas_is_taken_as_it_is() -> None:
    label = torch.arange(12, dtype=torch.int32).view(3, 4)
    fused, confidence = fuse([label])
    assert torch.equal(fused, label) and bool((confidence == 1).all())


def test_maps_of_two_types_are_fused_in_one_that_holds_both() -> None:
    fused, _ = fuse([torch.full((2, 2), 200, dtype=torch.uint8), torch.full((2, 2), -5, dtype=torch.int16)])
    assert fused.tolist() == [[-5, -5], [-5, -5]]


def _image(shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    return gaussian_filter(noise, 1.5).astype(np.float32)


@pytest.mark.parametrize("shape", [(24, 23), (16, 15, 14)])
def test_local_similarity_is_high_where_images_are_alike_and_nowhere_else(shape: tuple[int, ...]) -> None:
    fixed, other = _image(shape, 0), _image(shape, 1)
    half = shape[0] // 2
    warped = np.concatenate([-3 * fixed[:half] + 7, other[half:]])
    found = local_similarity(torch.from_numpy(warped), torch.from_numpy(fixed))
    assert found.shape == shape and 0 <= float(found.min()) and float(found.max()) <= 1
    assert float(found[: half - 7].min()) > 0.98  # Contrast and brightness do not count.
    assert float(found[half + 4 :].mean()) < 0.5


def test_a_constant_image_is_similar_to_nothing() -> None:
    assert float(local_similarity(torch.ones(8, 8), torch.from_numpy(_image((8, 8), 0))).max()) == 0
    assert correlation(torch.ones(4), torch.arange(4.0), torch.ones(4, dtype=torch.bool)) == 0


def test_agreement_is_the_mean_dice_of_each_two() -> None:
    one, other, third = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 2]]), torch.tensor([[0, 0, 0, 0]])
    assert agreement([one]) is None
    assert agreement([third, third]) is None
    # Label 1: 2 / 3, label 2: 0; against an empty map all are 0.
    assert agreement([one, other, third]) == pytest.approx((1 / 3 + 0 + 0) / 3)


class _Shifts:
    """A "bundle" whose scans are arrays that differ by a shift along the first axis."""

    def __init__(self, shifts: dict[str, int], images: dict[str, np.ndarray]) -> None:
        self.shifts, self.images = shifts, images
        self.asked: list[str] = []

    def register(self, moving: Any, fixed: Any, **options: Any) -> Any:
        self.asked.append(moving)
        shift = self.shifts[moving]
        affine = np.diag([2.0, 2, 2, 1])

        def image(array: np.ndarray) -> Any:
            return SimpleNamespace(array=array, affine=affine)

        return SimpleNamespace(
            warped=image(np.roll(self.images[moving], -shift, 0)),
            warped_label=image(np.roll(self.images[options["moving_label"]], -shift, 0)),
            registration=SimpleNamespace(pair={"fixed_scan": torch.from_numpy(self.images[fixed])[None]}),
        )


def _phantoms() -> tuple[_Shifts, list[Atlas], np.ndarray]:
    """Two atlases that are the target, shifted, and three that are something else, with wrong labels."""
    target = _image((16, 16, 16), 3)
    truth = (target > 0).astype(np.int16) + (target > 0.1)
    images, shifts, atlases = {"target": target}, {}, []
    for number in range(5):
        good, name = number < 2, f"atlas{number}"
        shifts[name] = number
        images[name] = np.roll(target if good else _image((16, 16, 16), 10 + number), number, 0)
        images[f"{name}_label"] = np.roll(truth, number, 0) if good else np.full_like(truth, 2)
        atlases.append(Atlas(name, name, f"{name}_label"))
    return _Shifts(shifts, images), atlases, truth


def test_atlases_that_resemble_the_target_outvote_more_that_do_not() -> None:
    bundle, atlases, truth = _phantoms()
    by_similarity = propagate(bundle, atlases, "target")
    by_majority = propagate(bundle, atlases, "target", vote="majority")
    np.testing.assert_array_equal(by_similarity.label, truth)
    assert (by_majority.label == 2).all()
    # Where the wrong ones happen to be right, all agree; elsewhere the right ones had more than half of the votes.
    assert (by_similarity.confidence[truth == 2] == 1).all()
    assert 0.5 < by_similarity.confidence[truth < 2].max() < 1
    assert list(by_similarity.similarities) == bundle.asked[:5]
    assert by_similarity.similarities["atlas1"] == pytest.approx(1) and by_similarity.similarities["atlas3"] < 0.5
    assert by_similarity.affine.tolist() == np.diag([2.0, 2, 2, 1]).tolist()


def test_one_atlas_leaves_no_doubt_and_no_agreement() -> None:
    bundle, atlases, truth = _phantoms()
    found: Propagation = propagate(bundle, atlases[:1], "target")
    np.testing.assert_array_equal(found.label, truth)
    assert found.agreement is None and found.confidence.min() == 1


def test_what_cannot_be_fused_is_refused() -> None:
    bundle, atlases, _ = _phantoms()
    with pytest.raises(InputError, match="no atlas"):
        propagate(bundle, [], "target")
    with pytest.raises(InputError, match="one of similarity, majority"):
        propagate(bundle, atlases, "target", vote="loudest")
    with pytest.raises(InputError, match="one name"):
        propagate(bundle, [atlases[0], atlases[0]], "target")
    with pytest.raises(InputError, match="several shapes"):
        fuse([torch.zeros(2, 2, dtype=torch.int16), torch.zeros(2, 3, dtype=torch.int16)])

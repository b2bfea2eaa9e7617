# SPDX-License-Identifier: Apache-2.0
"""Mutual information, against one made of NumPy's loops and percentiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.losses import MutualInformationLoss, mutual_information


def images(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(shape, generator=generator, dtype=torch.float64)
    return first.requires_grad_(), (100 * (1 - first.detach()) ** 2 + 20 * noise).requires_grad_()


def gaussian(unit: np.ndarray, bins: int) -> np.ndarray:
    """Weights (voxels, bins) of places from 0 to 1, VFA's."""
    rows = np.exp(-((unit[:, None] - (np.arange(bins) + 0.5) / bins) ** 2) / (2 * (1 / bins / 2.355) ** 2))
    return rows / rows.sum(1, keepdims=True)


def cubic(unit: np.ndarray, bins: int) -> np.ndarray:
    """Of ``pred``, Mattes et al."""
    distance = np.abs(1 + unit * (bins - 3) - np.arange(bins)[:, None]).T
    return np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, np.maximum(2 - distance, 0) ** 3 / 6)


def box(unit: np.ndarray, bins: int) -> np.ndarray:
    """Of ``target``, Mattes et al."""
    return np.eye(bins)[np.minimum((unit * bins).astype(int), bins - 1)]


WINDOWS = {"gaussian": (gaussian, gaussian), "bspline": (cubic, box)}


def textbook(first: np.ndarray, second: np.ndarray, bins: int, window: str, normalised: bool) -> float:
    weights = []
    for image, weigh in zip((first.ravel(), second.ravel()), WINDOWS[window], strict=True):
        low, high = np.percentile(image, [1, 99])
        weights.append(weigh((np.clip(image, low, high) - low) / (high - low), bins))
    joint = np.zeros((bins, bins))
    for a, b in zip(*weights, strict=True):
        joint += np.outer(a, b) / first.size
    if normalised:
        one, other, both = (-(p[p > 0] * np.log(p[p > 0])).sum() for p in (joint.sum(1), joint.sum(0), joint))
        return float(2 - (one + other) / both)
    independent = np.outer(joint.sum(1), joint.sum(0))
    return float(-(joint * np.log(joint / (independent + 2.0**-23) + 1e-10)).sum())


@pytest.mark.parametrize("shape", [(2, 1, 7, 9), (1, 2, 5, 6, 4)])
@pytest.mark.parametrize(("bins", "window"), [(2, "gaussian"), (8, "gaussian"), (4, "bspline"), (9, "bspline")])
@pytest.mark.parametrize("normalised", [False, True])
def test_value_equals_the_textbook(
    shape: tuple[int, ...], bins: int, window: str, normalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutual_information, "_CPU_PIECE", 17)
    pair = [image.detach() for image in images(*shape)]
    expected = np.mean([textbook(a.numpy(), b.numpy(), bins, window, normalised) for a, b in zip(*pair, strict=True)])
    loss = MutualInformationLoss(bins, window, normalised)
    # Of sums of a thousand logarithms in float64.
    assert loss(*pair).item() == pytest.approx(expected, abs=1e-9)
    # Float32 leaves bins out, and places are rounded.
    assert loss(*(image.float() for image in pair)).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("window", list(WINDOWS))
def test_gradients_are_exact_where_percentiles_stand_still(window: str, normalised: bool) -> None:
    pair = images(1, 1, 5, 6, 4)
    if window == "bspline":
        pair[1].requires_grad_(False)
    loss = MutualInformationLoss(8, window, normalised)
    loss(*pair).backward()
    for i, image in enumerate(pair):
        if not image.requires_grad:
            continue
        assert image.grad is not None
        order = image.detach().flatten().argsort()
        # The outermost values make the percentiles, and those beyond them have no gradient.
        assert image.grad.flatten()[order[[0, -1]]].tolist() == [0, 0]
        for place in order[5:-5:20].tolist():
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.detach().clone() for x in pair]
                moved[i].view(-1)[place] += step
                values.append(loss(*moved).item())
            assert image.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_sums_of_many_equal_values_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    # In float32, a hundred thousand times one weight would be off by a thousandth.
    monkeypatch.setattr(mutual_information, "_CPU_PIECE", 1 << 20)
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(1, 1, 400, 500, generator=generator).sub_(0.5).clamp_(min=0)
    second = first.flip(2)
    for window in WINDOWS:
        loss = MutualInformationLoss(window=window)
        # The rounding of float32.
        assert loss(first, second).item() == pytest.approx(loss(first.double(), second.double()).item(), abs=1e-6)


@pytest.mark.parametrize("window", list(WINDOWS))
@pytest.mark.parametrize("normalised", [False, True])
def test_kind_of_intensities_does_not_matter(window: str, normalised: bool) -> None:
    first, second = (x.detach() for x in images(1, 1, 9, 8, 7))
    loss = MutualInformationLoss(window=window, normalised=normalised)
    expected = loss(first, second).item()
    # Mirrored values meet the bins alike only where windows are symmetric.
    flipped = 1 - second if window == "gaussian" else 1 + second
    assert loss(5 + 100 * first, flipped).item() == pytest.approx(expected, abs=1e-9)
    lowest, highest = (0, 1) if normalised else (-float("inf"), 0)
    assert lowest < loss(first, first).item() < expected < loss(first, torch.rand_like(first)).item() < highest


def test_an_image_of_one_intensity_tells_nothing_and_has_a_finite_gradient() -> None:
    first, _ = images(1, 1, 6, 5)
    flat = torch.full((1, 1, 6, 5), 3.0).requires_grad_()
    value = MutualInformationLoss()(flat, first.detach().float())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-3)
    assert flat.grad is not None and flat.grad.isfinite().all()


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("window", list(WINDOWS))
def test_whole_weights_are_as_many_voxels_and_none_has_no_influence(window: str, normalised: bool) -> None:
    shape = (2, 2, 5, 6, 4)
    pred, target = (image.detach() for image in images(*shape))
    weight = (torch.rand(2, 1, *shape[2:], generator=torch.Generator().manual_seed(3)) > 0.4).float()
    chosen = weight.expand(shape) > 0
    loss = MutualInformationLoss(5, window, normalised)
    expected = [loss(*(image[b][chosen[b]][None, None, :, None] for image in (pred, target))).item() for b in range(2)]
    results = []
    for outside in (0.0, torch.nan, torch.inf):
        moving = torch.where(chosen, pred, outside).requires_grad_()
        value = loss(moving, torch.where(chosen, target, outside), weight)
        (gradient,) = torch.autograd.grad(value, moving)
        # The rounding of float64.
        assert value.item() == pytest.approx(np.mean(expected), abs=1e-12)
        assert gradient[chosen].any() and not gradient[~chosen].any()
        results.append(gradient)
    assert results[0].equal(results[1]) and results[0].equal(results[2])


@pytest.mark.parametrize("window", list(WINDOWS))
def test_weights_between_0_and_1_weigh_the_histogram_and_the_gradient(window: str) -> None:
    pred, target = (image.detach() for image in images(1, 1, 5, 6, 4))
    loss = MutualInformationLoss(5, window)
    # Voxels of weight 1 count twice as often as those of 0.5.
    weight = torch.ones(1, 1, 5, 6, 4)
    weight[:, :, 2:] = 0.5
    twice = [torch.cat([image, image[:, :, :2]], dim=2) for image in (pred, target)]
    bounds = [np.percentile(image.numpy(), [1, 99]) for image in (pred, target)]
    # The same percentiles in both.
    for image, (low, high) in zip((pred, target, *twice), bounds * 2, strict=True):
        image[image < low + 0.1 * (high - low)] = low + 0.1 * (high - low)
        image[image > low + 0.8 * (high - low)] = low + 0.8 * (high - low)
    results = []
    cases: list[tuple[Tensor, Tensor, Tensor | None]] = [(pred, target, weight), (twice[0], twice[1], None)]
    for first, second, counts in cases:
        leaf = first.clone().requires_grad_()
        value = loss(leaf, second, counts)
        (gradient,) = torch.autograd.grad(value, leaf)
        results.append((value.item(), gradient[:, :, :5]))
    # The rounding of float64.
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-12)
    # A copy has half of a voxel's gradient.
    share = torch.where(weight == 1, 2.0, 1.0)
    torch.testing.assert_close(results[0][1], results[1][1] * share, rtol=1e-9, atol=1e-14)
    assert loss(pred, target, torch.ones_like(pred)).item() == loss(pred, target).item()


def test_samples_without_weights_count_as_nothing() -> None:
    pair = images(2, 1, 5, 6)
    weight = torch.ones(2, 1, 5, 6)
    weight[1] = 0
    value = MutualInformationLoss(4)(*pair, weight)
    value.backward()
    assert value.item() == pytest.approx(MutualInformationLoss(4)(*(image[:1] for image in pair)).item() / 2)
    assert pair[0].grad is not None and pair[0].grad[0].any() and not pair[0].grad[1].any()
    with pytest.raises(InputError, match="one weight per voxel"):
        MutualInformationLoss(4)(*pair, weight[:, :, 1:])


def test_values_that_are_none_make_the_loss_none() -> None:
    first, second = (x.detach() for x in images(1, 1, 6, 5))
    first[0, 0, 2, 3] = torch.nan
    for window in WINDOWS:
        assert MutualInformationLoss(8, window)(first.requires_grad_(), second).isnan()


def test_bad_settings_and_images_are_refused() -> None:
    with pytest.raises(InputError, match="choose 2 or more"):
        MutualInformationLoss(1)
    with pytest.raises(InputError, match="choose 4 or more"):
        MutualInformationLoss(3, "bspline")
    with pytest.raises(InputError, match="choose 'gaussian' or 'bspline'"):
        MutualInformationLoss(8, "linear")
    with pytest.raises(InputError, match="resample one to the other's grid"):
        MutualInformationLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))
    with pytest.raises(InputError, match="no gradient of the target"):
        MutualInformationLoss(8, "bspline")(*images(1, 1, 4, 5))

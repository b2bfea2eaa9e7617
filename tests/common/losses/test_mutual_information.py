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


def textbook(first: np.ndarray, second: np.ndarray, bins: int) -> float:
    weights = []
    for image in (first.ravel(), second.ravel()):
        low, high = np.percentile(image, [1, 99])
        width = (high - low) / bins
        centres = low + (np.arange(bins) + 0.5) * width
        rows = np.exp(-((np.clip(image, low, high)[:, None] - centres) ** 2) / (2 * (width / 2.355) ** 2))
        weights.append(rows / rows.sum(1, keepdims=True))
    joint = np.zeros((bins, bins))
    for a, b in zip(*weights, strict=True):
        joint += np.outer(a, b) / first.size
    independent = np.outer(joint.sum(1), joint.sum(0))
    return float(-(joint * np.log(joint / (independent + 2.0**-23) + 1e-10)).sum())


@pytest.mark.parametrize("shape", [(2, 1, 7, 9), (1, 1, 5, 6, 4)])
@pytest.mark.parametrize("bins", [2, 8])
def test_value_equals_the_textbook(shape: tuple[int, ...], bins: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual_information, "_CPU_PIECE", 17)
    pair = images(*shape)
    first, second = (x.detach().numpy() for x in pair)
    expected = np.mean([textbook(a, b, bins) for a, b in zip(first, second, strict=True)])
    assert MutualInformationLoss(bins)(*pair).item() == pytest.approx(expected, abs=1e-9)


def test_gradients_to_both_images_are_exact_where_percentiles_stand_still() -> None:
    pair = images(1, 1, 5, 6, 4)
    value = MutualInformationLoss(8)(*pair)
    value.backward()
    for i, image in enumerate(pair):
        assert image.grad is not None
        order = image.detach().flatten().argsort()
        # The outermost values make the percentiles, and those beyond them have no gradient.
        assert image.grad.flatten()[order[[0, -1]]].tolist() == [0, 0]
        for place in order[5:-5:20].tolist():
            values = []
            for step in (1e-5, -1e-5):
                moved = [x.detach().clone() for x in pair]
                moved[i].view(-1)[place] += step
                values.append(MutualInformationLoss(8)(*moved).item())
            assert image.grad.view(-1)[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)


def test_kind_of_intensities_does_not_matter() -> None:
    first, second = (x.detach() for x in images(1, 1, 9, 8, 7))
    loss = MutualInformationLoss()
    expected = loss(first, second).item()
    assert loss(5 + 100 * first, 1 - second).item() == pytest.approx(expected, abs=1e-9)
    assert loss(first, first).item() < expected < loss(first, torch.rand_like(first)).item() < 0


def test_an_image_of_one_intensity_tells_nothing_and_has_a_finite_gradient() -> None:
    first, _ = images(1, 1, 6, 5)
    flat = torch.full((1, 1, 6, 5), 3.0).requires_grad_()
    value = MutualInformationLoss()(flat, first.detach().float())
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-3)
    assert flat.grad is not None and flat.grad.isfinite().all()


def test_too_few_bins_and_other_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="choose 2 or more"):
        MutualInformationLoss(1)
    with pytest.raises(InputError, match="resample one to the other's grid"):
        MutualInformationLoss()(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5))

# SPDX-License-Identifier: Apache-2.0
"""Noise of a draw is normal, and other for another draw."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import kstest

from common.losses.noise import normal_noise


def draw(*numbers: int) -> torch.Tensor:
    return torch.tensor([numbers, (7, 7, 7)])


def test_numbers_are_normal_and_independent() -> None:
    noise = normal_noise(draw(0, 1, 2), (1, 3, 40, 41, 20)).double()
    assert noise.shape == (1, 3, 40, 41, 20)
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    flat = noise.flatten()
    # One standard error is 0.003.
    for lag in (1, 2, 20, 820, len(flat) // 2):
        assert abs(float(torch.corrcoef(torch.stack([flat[lag:], flat[:-lag]]))[0, 1])) < 0.015


@pytest.mark.parametrize("other", [(1, 1, 2), (0, 2, 2), (0, 1, 3), (1, 0, 2), (0, 2, 1)])
def test_every_number_of_the_draw_of_the_first_item_counts(other: tuple[int, int, int]) -> None:
    first, again = normal_noise(draw(0, 1, 2), (5000,)), normal_noise(draw(0, 1, 2)[:1], (5000,))
    assert torch.equal(first, again)
    others = normal_noise(draw(*other), (5000,))
    # One standard error is 0.014. Nor are they the same numbers in another order.
    assert abs(float(torch.corrcoef(torch.stack([first, others]))[0, 1])) < 0.06
    assert len(set(first.tolist()) & set(others.tolist())) < 10


def test_an_odd_count_and_large_seeds_are_no_matter() -> None:
    noise = normal_noise(draw(2**31 - 1, 10**6, 10**9), (7,))
    assert noise.shape == (7,) and noise.isfinite().all() and noise.dtype == torch.float32

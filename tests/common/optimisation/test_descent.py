# SPDX-License-Identifier: Apache-2.0
"""The loop: Adam's steps, what is compared, and what happens where values are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.optimisation import descend


def adam(*groups: tuple[Tensor, float]) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": [x], "lr": rate} for x, rate in groups])


def test_the_first_step_of_adam_is_the_learning_rate_of_each_group() -> None:
    fast, slow = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
    steps = descend(lambda number: (fast**2 + slow**2).sum(), adam((fast, 0.5), (slow, 0.01)), 1)
    assert (steps, fast.item(), slow.item()) == (1, pytest.approx(2.5), pytest.approx(2.99))


def test_each_step_has_a_number_of_its_own() -> None:
    x, numbers = torch.tensor([1.0], requires_grad=True), []

    def objective(number: int) -> Tensor:
        numbers.append((number, torch.is_grad_enabled()))
        return x.square().sum()

    descend(objective, adam((x, 0.1)), 3)
    assert numbers == [(1, True), (2, True), (3, True), (3, False)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_last_finite_state_is_kept_where_a_value_is_not_finite(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.tensor([1.0], requires_grad=True)
    # Adam steps by 0.1: 1, 0.9, 0.8, and the next is out of bounds.
    steps = descend(lambda number: torch.where(x > 0.75, x, bad).sum(), adam((x, 0.1)), 10)
    # Adam's steps are its rate to its epsilon.
    assert steps == 2 and x.item() == pytest.approx(0.8, abs=1e-4)
    assert "not finite after 2 steps" in caplog.text


def test_a_gradient_that_is_not_finite_leaves_no_trace() -> None:
    x = torch.tensor([1.0], requires_grad=True)
    # The slope of the root at 0 is infinite, and 0 times infinity no number.
    steps = descend(lambda number: (0 * (x - 1).sqrt() + x).sum(), adam((x, 0.1)), 3)
    assert steps == 0 and x.item() == 1


def test_a_start_that_is_not_finite_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.tensor([1.0], requires_grad=True)
    assert descend(lambda number: (x * math.nan).sum(), adam((x, 0.1)), 3) == 0
    assert x.item() == 1 and "0 steps" in caplog.text


def test_it_ends_where_nothing_is_won_any_more() -> None:
    x = torch.tensor([1.0], requires_grad=True)
    steps = descend(lambda number: x.square().sum(), torch.optim.SGD([x], lr=0.1), 1000, tolerance=1e-3)
    # x shrinks to 0.8 of itself in each step: twenty steps tell that the next ten win less than a thousandth.
    assert 20 <= steps < 40
    assert descend(lambda number: x.square().sum(), torch.optim.SGD([x], lr=0.1), 50) == 50

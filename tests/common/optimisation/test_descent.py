# SPDX-License-Identifier: Apache-2.0
"""The loop: Adam's steps, what is compared, and what happens where values are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.optimisation import descend


def test_the_first_step_of_adam_is_the_learning_rate_of_each_group() -> None:
    fast, slow = (torch.tensor([3.0], requires_grad=True) for _ in range(2))
    groups = [{"params": [fast], "lr": 0.5}, {"params": [slow], "lr": 0.01}]
    found = descend(lambda number: (fast**2 + slow**2).sum(), groups, 1)
    assert (fast.item(), slow.item()) == (pytest.approx(2.5), pytest.approx(2.99))
    assert (found.steps, found.before, found.after) == (1, 18.0, pytest.approx(2.5**2 + 2.99**2))
    assert found.better and found.seconds > 0


def test_each_step_has_a_draw_of_its_own_and_both_ends_the_same_one() -> None:
    x, numbers = torch.tensor([1.0], requires_grad=True), []

    def objective(number: int) -> Tensor:
        numbers.append((number, torch.is_grad_enabled()))
        return x.square().sum()

    descend(objective, [{"params": [x], "lr": 0.1}], 3)
    assert numbers == [(0, False), (1, True), (2, True), (3, True), (0, False)]


def test_an_objective_that_has_grown_is_no_better() -> None:
    x = torch.tensor([0.1], requires_grad=True)
    found = descend(lambda number: x.square().sum(), [{"params": [x], "lr": 10.0}], 1)
    assert found.after > found.before and not found.better


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_last_finite_state_is_kept_where_a_value_is_not_finite(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.tensor([1.0], requires_grad=True)
    # Adam steps by 0.1: 1, 0.9, 0.8, and the next is out of bounds.
    found = descend(lambda number: torch.where(x > 0.75, x, bad).sum(), [{"params": [x], "lr": 0.1}], 10)
    assert found.steps == 2 and x.item() == pytest.approx(0.8, abs=1e-4)
    assert found.better and found.after == pytest.approx(0.8, abs=1e-4)
    assert "not finite after 2 steps" in caplog.text


def test_a_gradient_that_is_not_finite_leaves_no_trace() -> None:
    x = torch.tensor([1.0], requires_grad=True)
    # The slope of the root at 0 is infinite, and 0 times infinity no number.
    found = descend(lambda number: (0 * (x - 1).sqrt() + x).sum(), [{"params": [x], "lr": 0.1}], 3)
    assert x.item() == 1 and found.steps == 0 and not found.better


def test_a_start_that_is_not_finite_ends_at_once(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.tensor([1.0], requires_grad=True)
    found = descend(lambda number: (x * math.nan).sum(), [{"params": [x], "lr": 0.1}], 3)
    assert found.steps == 0 and not found.better and x.item() == 1 and "0 steps" in caplog.text

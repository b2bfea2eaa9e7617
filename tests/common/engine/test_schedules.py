# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a function of the epoch."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine, Events

from common.checks import InputError
from common.engine.schedules import polynomial_decay, schedule_handler


def test_rates_are_the_published_ones() -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=4e-4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, polynomial_decay(4e-4, 301))
    for epoch in range(301):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(
            round(4e-4 * (1 - epoch / 301) ** 0.9, 8), rel=1e-12, abs=1e-15
        )
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0


def test_beyond_the_end_the_rate_stays_zero() -> None:
    factor = polynomial_decay(0.1, 10, power=1, decimals=3)
    assert [factor(epoch) for epoch in (0, 5, 10, 11)] == pytest.approx([1, 0.5, 0, 0])


@pytest.mark.parametrize(("rate", "epochs"), [(0, 10), (-1, 10), (0.1, 0)])
def test_rate_or_length_of_nothing_is_refused(rate: float, epochs: int) -> None:
    with pytest.raises(InputError, match="both must be positive"):
        polynomial_decay(rate, epochs)


def rates(updates_per_epoch: int, epochs: int) -> list[float]:
    """The rate of each update of a training with warm restarts."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=2, T_mult=2, eta_min=1e-5)
    used: list[float] = []

    def update(engine: Engine, batch: int) -> None:
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()

    engine = Engine(update)
    schedule_handler(scheduler).attach(engine)
    engine.run([0] * updates_per_epoch, max_epochs=epochs)
    return used


@pytest.mark.parametrize("n", [5, 10])
def test_warm_restarts_follow_the_updates_one_behind(n: int) -> None:
    used = rates(n, epochs=7)
    for update, rate in enumerate(used):
        time = max(update - 1, 0) / n
        start, length = (0, 2) if time < 2 else (2, 4) if time < 6 else (6, 8)
        falling = (1 + math.cos(math.pi * (time - start) / length)) / 2
        assert rate == pytest.approx(1e-5 + (1e-3 - 1e-5) * falling, rel=1e-12)
    assert used[0] == used[1] == used[2 * n + 1] == 1e-3 > used[2 * n - 1] > used[2 * n] > 1e-5


def test_other_schedulers_step_once_per_epoch() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    handler = schedule_handler(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5))
    engine = Engine(lambda engine, batch: optimizer.step())
    handler.attach(engine)
    used: list[float] = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: used.append(optimizer.param_groups[0]["lr"]))
    engine.run([0, 0, 0], max_epochs=2)
    assert used == [1.0] * 3 + [0.5] * 3

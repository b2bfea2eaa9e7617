# SPDX-License-Identifier: Apache-2.0
"""The learning rate as a function of the epoch."""

from __future__ import annotations

import pytest
import torch

from common.checks import InputError
from common.engine.schedules import polynomial_decay


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

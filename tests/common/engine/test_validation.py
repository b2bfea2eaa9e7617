# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from ignite.engine import Engine

from common.checks import InputError
from common.engine import ValidationHandler


class Evaluator:
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def run(self, epoch: int) -> None:
        self.epochs.append(epoch)


@pytest.mark.parametrize(
    ("interval", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (100, [5])], ids=str
)
def test_the_last_epoch_is_validated_whatever_the_interval(interval: int, expected: list[int]) -> None:
    evaluator: Any = Evaluator()
    engine = Engine(lambda engine, batch: None)
    ValidationHandler(evaluator, interval).attach(engine)
    engine.run(range(2), max_epochs=5)
    assert evaluator.epochs == expected


def test_interval_below_one_is_refused() -> None:
    evaluator: Any = Evaluator()
    with pytest.raises(InputError, match="--val_interval is 0"):
        ValidationHandler(evaluator, 0)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from common.checks import InputError
from common.engine.averaging import AveragedWeights


class Counting(nn.Module):
    """A weight, and a buffer of whole numbers."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


def step(network: Counting, number: int) -> None:
    """Weights of a step that can be told from all others."""
    with torch.no_grad():
        network.weight.copy_(torch.tensor([1.0, -2.0]) * number**2)
        network.count.fill_(number)


def test_average_is_that_of_the_steps_and_only_the_evaluator_sees_it() -> None:
    network, seen = Counting(), []
    trainer = Engine(lambda engine, batch: step(network, engine.state.iteration))
    evaluator = Engine(lambda engine, batch: seen.append((network.weight.tolist(), int(network.count))))
    AveragedWeights(network, 0.75).attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([0]))
    trainer.run(range(3), max_epochs=2)
    expected, averages = 1.0, [1.0]
    for number in range(2, 7):
        expected = 0.75 * expected + 0.25 * number**2
        averages.append(expected)
    assert seen == [([averages[2], -2 * averages[2]], 3), ([averages[5], -2 * averages[5]], 6)]
    assert network.weight.tolist() == [36, -72] and int(network.count) == 6


def test_evaluator_before_the_first_step_sees_the_weights_themselves() -> None:
    network, seen = Counting(), []
    step(network, 2)
    evaluator = Engine(lambda engine, batch: seen.append(network.weight.tolist()))
    AveragedWeights(network, 0.9).attach(Engine(lambda engine, batch: None), evaluator)
    evaluator.run([0])
    assert seen == [[4, -8]] and network.weight.tolist() == [4, -8]


def test_average_goes_on_from_its_state() -> None:
    network = Counting()
    first, second = AveragedWeights(network, 0.5), AveragedWeights(network, 0.5)
    trainer = Engine(lambda engine, batch: step(network, engine.state.iteration))
    first.attach(trainer, Engine(lambda engine, batch: None))
    trainer.run(range(2))
    second.load_state_dict(first.state_dict())
    seen: list[float] = []
    evaluator = Engine(lambda engine, batch: seen.append(network.weight[0].item()))
    second.attach(Engine(lambda engine, batch: None), evaluator)
    evaluator.run([0])
    assert seen == [0.5 * 1 + 0.5 * 4]


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_other_decays_are_refused(decay: float) -> None:
    with pytest.raises(InputError, match="--ema_decay is"):
        AveragedWeights(Counting(), decay)

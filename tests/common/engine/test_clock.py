# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys

from common.engine import RegistrationWriter, SubmissionWriter
from common.engine.clock import NetworkClock


class Machine:
    """The call of the network returns after 1 s, what it began on a GPU takes 2 s more, the rest of the step 10 s.

    All the time two threads are busy.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.waits = 0
        clocks = SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: 2 * self.now)
        monkeypatch.setattr("common.engine.clock.time", clocks)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)

    def wait(self, device: torch.device) -> None:
        self.now += 2
        self.waits += 1

    def run(self, handler: Any, device: str) -> None:
        engine = Engine(self.step)
        engine.register_events(*IterationEvents)
        engine.state.device = torch.device(device)
        handler.attach(engine)
        engine.run([0])

    def step(self, engine: Engine, batch: int) -> list[Any]:
        self.now += 1
        engine.state.output = {CommonKeys.PRED: {}}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.now += 10
        return []


@pytest.mark.parametrize(("device", "seconds"), [("cpu", 1), ("cuda", 3)])
def test_all_of_the_networks_time_and_nothing_else_counts(
    device: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = NetworkClock()
    Machine(monkeypatch).run(clock, device)
    assert (clock.seconds, clock.cpu_seconds) == (seconds, 2 * seconds)


@pytest.mark.parametrize("writer", [RegistrationWriter, SubmissionWriter])
def test_writers_wait_for_the_gpu(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    machine.run(writer(Mock()), "cuda")
    assert machine.waits == 2

# SPDX-License-Identifier: Apache-2.0
"""How long a network takes, and how much of the processor."""

from __future__ import annotations

import time

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents


class NetworkClock:
    """Seconds of the network on the batch in hand, without reading, measuring and writing.

    Attributes:
        seconds: of the last batch.
        cpu_seconds: of the processor for it, all threads of this process together.
    """

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._started = self._used = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        _synchronise(engine)
        self._started, self._used = time.perf_counter(), time.process_time()

    def _stop(self, engine: Engine) -> None:
        _synchronise(engine)
        self.seconds = time.perf_counter() - self._started
        self.cpu_seconds = time.process_time() - self._used


def _synchronise(engine: Engine) -> None:
    """A GPU's work goes on when the call that began it returns."""
    if engine.state.device.type == "cuda":
        torch.cuda.synchronize(engine.state.device)

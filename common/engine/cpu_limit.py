# SPDX-License-Identifier: Apache-2.0
"""Trainings that end when they have used up their processor time, so that several can be compared at the same cost."""

from __future__ import annotations

import logging
import time

import ignite.distributed as idist
from ignite.engine import Engine, Events

from common.checks import InputError

logger = logging.getLogger(__name__)


class CpuLimit:
    """Counts the processor seconds of a training, and ends it with the step that reaches the limit.

    What counts is the reading of a pair and the step, of all threads of the process; validation, checkpoints and
    processes that read (``num_workers``) do not. The training ends as it does after its last epoch: with a validation,
    weights, a row of the history and a checkpoint, with which it goes on under a higher limit. ``ignite``'s
    ``TimeLimit`` counts hours of the clock, and ends without these.

    ``engine.state.cpu_seconds`` is what was used so far; it is part of the checkpoint where this handler is attached
    before the one that saves.

    Args:
        seconds: limit; None only counts.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer.

        Raises:
            InputError: for a limit on several processes, of which each would end at another step; when the trainer
                starts, where a training that goes on has reached the limit already.
        """
        if self.seconds is not None and idist.get_world_size() > 1:
            raise InputError("--max_cpu_seconds is for a training in one process; leave it out, or give --max_epochs.")
        engine.state_dict_user_keys.append("cpu_seconds")
        engine.state.cpu_seconds = 0.0
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._count)

    def _check(self, engine: Engine) -> None:
        used = engine.state.cpu_seconds
        if self.seconds is not None and used >= self.seconds:
            raise InputError(
                f"The training has used {used:.0f} CPU seconds, and --max_cpu_seconds is {self.seconds:g}: there is "
                "nothing to resume; raise it to train on."
            )

    def _start(self, engine: Engine) -> None:
        self._began = time.process_time()

    def _count(self, engine: Engine) -> None:
        state = engine.state
        state.cpu_seconds += time.process_time() - self._began
        if self.seconds is not None and state.cpu_seconds >= self.seconds:
            logger.info("%.0f CPU seconds are used: the training ends at step %d.", state.cpu_seconds, state.iteration)
            state.max_epochs = state.epoch
            engine.terminate_epoch()

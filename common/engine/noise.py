# SPDX-License-Identifier: Apache-2.0
"""Random numbers of training steps that a resumed run draws again."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from monai.engines import Trainer


class SeededNoise:
    """Seeds torch's generators, of all devices, before each step: with the run's seed, the step and the process.

    So what a step draws (sampled velocities, dropout, synthetic images) is a function of these three alone. A run that
    was killed goes on with the noise that it would have had, without a generator's state in its checkpoint, and the
    processes of one run draw different noise for their different pairs. Pairs are drawn from generators of their own.
    """

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer, whose sampler has the ``seed``."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Trainer) -> None:
        """Seed for the step that begins."""
        loader: Any = engine.data_loader
        numbers = [loader.sampler.seed, engine.state.iteration, idist.get_rank()]
        torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))

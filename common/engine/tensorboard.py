# SPDX-License-Identifier: Apache-2.0
"""Scalars and a picture of the first validation pair in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator

from common.engine.batch import registered
from common.engine.readiness import need_package
from common.losses import RegistrationLoss
from common.report.panels import as_rgb, panel
from common.spatial import warp


class TensorBoardHandler:
    """Writes each loss term per iteration, each validation metric per epoch, and one panel per validation.

    What an earlier run in the folder wrote beyond the iteration where this one starts is hidden by TensorBoard
    (``purge_step``): all of it, or after a resume the steps beyond the checkpoint.

    Args:
        log_dir: folder of the event files.
        loss: whose terms are written.
        evaluator: whose metrics and first pair are written. Of several processes the first one writes.

    Raises:
        InputError: when tensorboard is not installed.
    """

    def __init__(self, log_dir: str | Path, loss: RegistrationLoss, evaluator: Evaluator) -> None:
        self.log_dir = Path(log_dir)
        self.loss = loss
        self.evaluator = evaluator
        need_package("tensorboard", "Training")
        self._writer: Any = None
        self._iteration = 0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() != 0:
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_terms)
        engine.add_event_handler(Events.COMPLETED, self._close)
        self.evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._write_panel)
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._write_metrics)

    def _open(self, engine: Engine) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._iteration = engine.state.iteration
        self._writer = SummaryWriter(str(self.log_dir), purge_step=self._iteration + 1)

    def _write_terms(self, engine: Engine) -> None:
        self._iteration = engine.state.iteration
        for name, value in self.loss.terms_of_last_call().items():
            self._writer.add_scalar(f"loss/{name}", value, self._iteration)

    def _write_panel(self, engine: Engine) -> None:
        if engine.state.iteration % engine.state.epoch_length == 1 or engine.state.epoch_length == 1:
            pair = registered(engine.state.output)[0]
            warped = warp(pair["moving"][None], pair["ddf"][None])[0]
            title = f"{pair['moving_id']} to {pair['fixed_id']}, iteration {self._iteration}"
            images = {"moving": pair["moving"], "fixed": pair["fixed"], "warped": warped}
            picture = as_rgb(panel(**images, ddf=pair["ddf"], title=title))
            self._writer.add_image("validation pair", picture, self._iteration)

    def _write_metrics(self, engine: Engine) -> None:
        for name, value in engine.state.metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(f"validation/{name}", value, self._iteration)

    def _close(self, engine: Engine) -> None:
        self._writer.close()

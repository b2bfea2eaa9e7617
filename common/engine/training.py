# SPDX-License-Identifier: Apache-2.0
"""What every training hangs on its trainer, as one item of a workflow's list of handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from monai.engines.utils import IterationEvents
from torch import nn

from common.engine.averaging import AveragedWeights
from common.engine.checkpoints import BestModelHandler, ResumeHandler
from common.engine.cpu_limit import CpuLimit
from common.engine.earlier import start_from
from common.engine.key_metric import choose_key_metric
from common.engine.noise import SeededNoise
from common.engine.progress import History, ProgressBar
from common.engine.readiness import check_batches, check_file, check_space, training_files
from common.engine.schedules import schedule_handler
from common.engine.soundness import StopWhenNotFinite
from common.engine.tensorboard import TensorBoardHandler
from common.engine.validation import ValidationHandler
from common.losses import RegistrationLoss


class TrainingHandlers:
    """Noise, a guard, learning rate, validation with the best weights, history, TensorBoard, progress, checkpoint last.

    The order counts: a step that fails leaves nothing behind, a row of the history holds the validation of its epoch,
    and what is saved at the end of an epoch is what all the others have made of it. A bundle's own handlers stand
    before this item in the list: what they do is saved, too.

    MONAI's own handlers (``StatsHandler``, ``MLFlowHandler``, ``MetricLogger`` ...) look for the loss in a list of
    dictionaries, as decollation makes it. They find one for the whole batch: what a network returns may be a function,
    which cannot be decollated.

    Args:
        output_dir: folder of ``history.csv`` with its page, ``tensorboard`` and ``checkpoint.pt``.
        ckpt_path: file of the weights with the best validation metric.
        network: plain module, not the one wrapped for several GPUs.
        optimizer: any torch optimiser.
        lr_scheduler: any torch scheduler, which steps as :func:`common.engine.schedules.schedule_handler` says, or None
            for a constant learning rate.
        loss: whose terms are shown and written.
        evaluator: that validates, see :func:`common.engine.key_metric.choose_key_metric`.
        val_interval: epochs from one validation to the next.
        resume: whether to go on from the checkpoint where there is one.
        overwrite: whether to start anew although there is one, or weights.
        checkpoint_seconds: longest time between two checkpoints.
        max_cpu_seconds: processor time after which the training ends, see :class:`common.engine.cpu_limit.CpuLimit`.
        start_from: weights, or checkpoint, of an earlier training to begin with, see
            :func:`common.engine.earlier.start_from`; a run that is resumed has its own.
        ema_decay: of averaged weights, which are validated and kept, see
            :class:`common.engine.averaging.AveragedWeights`; None for those of the last step.

    Raises:
        InputError: as :class:`common.engine.ValidationHandler`, :class:`common.engine.BestModelHandler` and, on
            :meth:`attach`, :class:`common.engine.ResumeHandler` and :func:`common.engine.earlier.start_from`; and what
            :mod:`common.engine.readiness` finds.
    """

    def __init__(
        self,
        output_dir: str | Path,
        ckpt_path: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: RegistrationLoss,
        evaluator: Evaluator,
        val_interval: int,
        lr_scheduler: Any = None,
        resume: bool = False,
        overwrite: bool = False,
        checkpoint_seconds: float = 300.0,
        max_cpu_seconds: float | None = None,
        start_from: str | Path | None = None,
        ema_decay: float | None = None,
    ) -> None:
        folder = Path(output_dir)
        schedule = [] if lr_scheduler is None else [schedule_handler(lr_scheduler)]
        checkpoint = folder / "checkpoint.pt"
        self.evaluator = evaluator
        self.start_from = start_from
        check_file(ckpt_path, "--ckpt_path")
        check_file(checkpoint, "--output_dir")
        check_file(folder / "history.csv", "--output_dir")
        check_space(training_files(Path(ckpt_path), checkpoint, network, optimizer))
        choose_key_metric(evaluator)
        self.best_model = BestModelHandler(ckpt_path, network, overwrite, checkpoint if resume else None)
        self.average = None if ema_decay is None else AveragedWeights(network, ema_decay)
        self.checkpoint = ResumeHandler(
            *(checkpoint, network, optimizer, lr_scheduler, evaluator, resume, overwrite, checkpoint_seconds),
            val_interval=val_interval,
            average=self.average,
        )
        self.handlers: list[Any] = [
            SeededNoise(),
            StopWhenNotFinite(loss),
            CpuLimit(max_cpu_seconds),
            *schedule,
            ValidationHandler(evaluator, val_interval),
            History(folder / "history.csv", loss, evaluator),
            TensorBoardHandler(folder / "tensorboard", loss, evaluator),
            ProgressBar("training", loss),
            self.checkpoint,
        ]

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, last of its handlers; loads the checkpoint, or what to start from, at once."""
        check_batches(engine.data_loader)
        engine.add_event_handler(Events.STARTED, self.checkpoint.compare)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, _list_output)
        if self.average is not None:
            self.average.attach(engine, self.evaluator)
        self.best_model.attach(self.evaluator)
        for handler in self.handlers:
            handler.attach(engine)
        if self.start_from is not None and not self.checkpoint.goes_on:
            start_from(self.start_from, self.checkpoint.parts["network"], self.checkpoint.parts["optimizer"])


def _list_output(engine: Engine) -> None:
    output = engine.state.output
    if isinstance(output, dict):
        engine.state.output = [{**output, "loss": output["loss"].item()}]

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive a kill at any moment, and runs that go on from them bit for bit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import Evaluator, Trainer
from torch import nn

from common.checks import InputError
from common.engine.averaging import AveragedWeights
from common.engine.settings import brief, chosen_settings, differences, option, run_settings, step_settings
from common.io.checkpoints import check_finite_weights, load_checkpoint, save_atomically

logger = logging.getLogger(__name__)
_NAMED = 5
"""How many changes a refusal names."""


class ResumeHandler:
    """Saves everything that a run needs to go on, and goes on from it.

    What is saved: network, optimiser, learning-rate scheduler, averaged weights, state of the trainer (the iteration,
    and what handlers attached before this one name in ``state_dict_user_keys``), best validation metric. No random
    state is needed: the pairs are a function of seed, epoch and index, and the sampler skips what the epoch has seen;
    the noise of a step is one of seed and iteration (:class:`common.engine.noise.SeededNoise`). It is saved at the end
    of every epoch and, inside long epochs, every ``every_seconds``. Attach it last, so that what happens at the end
    of an epoch has happened when it is saved. A run goes on with the settings that it began with
    (:func:`common.engine.settings.run_settings` and ``step_settings``). Others, such as the number of epochs, may
    change: that is logged and kept in ``engine.state.changes``, text by the first epoch that is affected.

    Args:
        path: file of the checkpoint.
        network: plain module, not the one wrapped for several GPUs.
        optimizer: any torch optimiser.
        lr_scheduler: any torch scheduler, or None.
        evaluator: whose best metric is kept, or None.
        resume: whether to go on from ``path`` when it exists.
        overwrite: whether to start anew although ``path`` exists.
        every_seconds: longest time between two checkpoints. Of several processes the first one writes.
        val_interval: epochs from one validation to the next, where it is known.
        average: of the weights, or None.

    Raises:
        InputError: on :meth:`attach` or when the trainer starts, when there is a checkpoint that may not be replaced,
            or that is damaged, of another network, or of a run with other settings; and when an epoch's pairs do not
            make a batch.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: Any = None,
        evaluator: Evaluator | None = None,
        resume: bool = False,
        overwrite: bool = False,
        every_seconds: float = 300.0,
        val_interval: int | None = None,
        average: AveragedWeights | None = None,
    ) -> None:
        self.path = Path(path)
        self.parts: dict[str, Any] = {"network": network, "optimizer": optimizer}
        self.parts |= {} if lr_scheduler is None else {"lr_scheduler": lr_scheduler}
        self.parts |= {} if average is None else {"average": average}
        self.evaluator = evaluator
        self.resume = resume
        self.overwrite = overwrite
        self.every_seconds = every_seconds
        self.val_interval = val_interval
        self.settings: dict[str, Any] = {}
        self.chosen: dict[str, Any] = {}
        self._began: Mapping[str, Any] | None = None
        self._saved_at = time.monotonic()

    @property
    def goes_on(self) -> bool:
        """Whether there is a checkpoint to go on from, and it is to be."""
        return self.resume and self.path.is_file()

    def attach(self, engine: Trainer) -> None:
        """Register with a trainer; loads the checkpoint at once when resuming."""
        loader: Any = engine.data_loader
        if len(loader) == 0:
            raise InputError(
                f"--batch_size {loader.batch_size} is more than the {len(loader.sampler)} pair(s) that a process has "
                "per epoch: nothing would be trained."
            )
        engine.state.changes = {}
        self.settings = run_settings(
            engine, self.parts["network"], self.parts["optimizer"], self.parts.get("lr_scheduler")
        )
        average = self.parts.get("average")
        self.settings["ema_decay"] = None if average is None else average.decay
        self.chosen = chosen_settings(engine, self.evaluator, self.val_interval)
        if self.goes_on:
            self._load(engine)
        elif self.path.is_file() and not self.overwrite:
            raise InputError(
                f"{self.path} is the checkpoint of an earlier run: continue it with --resume true, choose another "
                "--output_dir, or start anew with --overwrite true."
            )
        elif self.resume:
            logger.info("There is nothing to resume at %s: starting from the beginning.", self.path)
        if not engine.has_event_handler(self.compare, Events.STARTED):
            engine.add_event_handler(Events.STARTED, self.compare)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._save_when_due)

    def compare(self, engine: Engine) -> None:
        """Compare what the trainer knows only when it starts; to be called before anything is written."""
        settings = step_settings(engine)
        self.settings |= settings
        if self._began is not None:
            self._check_settings(self._began, settings)

    def _save_when_due(self, engine: Engine) -> None:
        # At the last iteration of an epoch validation and scheduler have not run yet: that save comes with the epoch.
        last = engine.state.iteration % engine.state.epoch_length == 0
        if not last and time.monotonic() - self._saved_at >= self.every_seconds:
            self._save(engine)

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            content = {name: part.state_dict() for name, part in self.parts.items()}
            check_finite_weights(content["network"], "The network")
            content |= engine.state_dict()
            content |= {"settings": self.settings, "chosen": self.chosen, "changes": dict(engine.state.changes)}
            if self.evaluator is not None:
                state = self.evaluator.state
                content["best_metric"], content["best_metric_epoch"] = state.best_metric, state.best_metric_epoch
            save_atomically(content, self.path)
        self._saved_at = time.monotonic()

    def _load(self, engine: Trainer) -> None:
        content = load_checkpoint(self.path)
        if isinstance(content, dict):
            content.setdefault("cpu_seconds", 0.0)  # Earlier releases did not count them,
            content.get("settings", {}).setdefault("ema_decay", None)  # and averaged no weights.
        self._began = content
        self._check(engine, content)
        check_finite_weights(content["network"], str(self.path))
        try:
            for name, part in self.parts.items():
                part.load_state_dict(content[name])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"{self.path} does not fit this network or optimiser: {error}") from error
        epoch, done = divmod(content["iteration"], content["epoch_length"])
        self._restore_engine(engine, content, done)
        self._note_changes(engine, content, epoch + 1)
        logger.info("Resuming from %s: epoch %d, iteration %d.", self.path, epoch + 1, content["iteration"])

    def _check(self, engine: Trainer, content: Any) -> None:
        if not isinstance(content, Mapping) or not {"settings", *engine.state_dict()} <= set(content):
            raise InputError(
                f"{self.path} is no checkpoint to resume from, or one of an earlier version: start anew with "
                "--overwrite true."
            )
        self._check_settings(content, self.settings)
        if content["epoch_length"] != engine.state.epoch_length:
            raise InputError(
                f"{self.path} was written with {content['epoch_length']} iterations per epoch, now there are "
                f"{engine.state.epoch_length}: resume with the data and batch size of the first run."
            )
        epoch = content["iteration"] // content["epoch_length"]
        if epoch >= engine.state.max_epochs:
            raise InputError(
                f"{self.path} has {epoch} epochs behind it, and --max_epochs is {engine.state.max_epochs}: there is "
                "nothing to resume; raise --max_epochs to train on."
            )

    def _check_settings(self, content: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        began = content["settings"]
        unknown = [name for name in settings if name not in began]
        if unknown:
            logger.info("%s does not say its %s: they are not compared.", self.path, ", ".join(unknown))
        known = {name: value for name, value in settings.items() if name in began}
        changed = list(differences({name: began[name] for name in known}, known))
        if self.chosen["max_epochs"] != content.get("chosen", {}).get("max_epochs", self.chosen["max_epochs"]):
            # A schedule that ends with the training is another one where the training becomes longer.
            changed = [change for change in changed if "::lr_lambdas::" not in change[0]]
        if changed:
            named = [f"{option(path)} {brief(old)}, not {brief(new)}" for path, old, new in changed[:_NAMED]]
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise InputError(
                f"{self.path} was written with {', '.join(named)}{more}: resume with what the run began with, or start "
                "anew with --overwrite true."
            )

    def _note_changes(self, engine: Trainer, content: Mapping[str, Any], epoch: int) -> None:
        """Log what the run goes on with instead of what it had, and remember it from ``epoch`` on."""
        changes = list(differences(content["chosen"], self.chosen)) if "chosen" in content else []
        changes += [
            change for change in differences(content["settings"], self.settings) if "::lr_lambdas::" in change[0]
        ]
        engine.state.changes = dict(content.get("changes", {}))
        if changes:
            text = "; ".join(f"{path} {brief(old)} -> {brief(new)}" for path, old, new in changes)
            earlier = engine.state.changes.get(epoch)
            engine.state.changes[epoch] = text if earlier is None else f"{earlier}; {text}"
            logger.warning("Resuming with other settings: %s.", text)

    def _restore_engine(self, engine: Trainer, content: Mapping[str, Any], done: int) -> None:
        saved = {name: content[name] for name in engine.state_dict()}
        engine.load_state_dict(saved | {"max_epochs": engine.state.max_epochs})
        loader: Any = engine.data_loader
        loader.sampler.start = done * loader.batch_size
        if self.evaluator is not None and "best_metric" in content:
            self.evaluator.state.best_metric = content["best_metric"]
            self.evaluator.state.best_metric_epoch = content["best_metric_epoch"]


class BestModelHandler:
    """Keeps the weights with the best validation metric as a flat state dict, as ``monai.bundle.load`` wants it.

    Attach to the evaluator, with the key metric that it compares. Where that is NaN, as Dice is without labels, the
    last weights count.

    Args:
        path: file of the weights, usually ``models/model.pt``.
        network: plain module.
        overwrite: whether weights that are there already may be replaced.
        resume_from: checkpoint of the training that goes on, or None; where it exists, the weights are its own.

    Raises:
        InputError: when there are weights already that may not be replaced.
    """

    def __init__(
        self,
        path: str | Path,
        network: nn.Module,
        overwrite: bool = False,
        resume_from: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        goes_on = resume_from is not None and Path(resume_from).is_file()
        if self.path.exists() and not (overwrite or goes_on):
            missing = "" if resume_from is None else f", and no checkpoint {resume_from} to go on from"
            resume = "continue their training with --resume true, " if resume_from is None else ""
            raise InputError(
                f"There are weights at {path} already{missing}: {resume}choose another --ckpt_path, or replace them "
                "with --overwrite true."
            )
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after its metrics."""
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save when the epoch just evaluated is the best so far, or none can be called so."""
        state = engine.state
        if idist.get_rank() == 0 and (state.best_metric_epoch == state.epoch or math.isnan(state.best_metric)):
            weights = self.network.state_dict()
            check_finite_weights(weights, "The network")
            save_atomically(weights, self.path)

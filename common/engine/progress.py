# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a run: a bar with an estimate, a line per validation, a table of the whole history."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import Evaluator
from tqdm.auto import tqdm

from common.io.provenance import provenance
from common.io.tables import read_csv, write_csv
from common.losses import RegistrationLoss
from common.report.pages import write_training_report

logger = logging.getLogger(__name__)


class ProgressBar:
    """One bar over a whole run, with the time that is left and the current loss.

    Args:
        desc: text in front of the bar.
        loss: whose terms are shown behind it; None for nothing. Of several processes the first one shows its bar.
    """

    def __init__(self, desc: str, loss: RegistrationLoss | None = None) -> None:
        self.desc = desc
        self.loss = loss
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer or an evaluator."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
            for event in (Events.COMPLETED, Events.EXCEPTION_RAISED):
                engine.add_event_handler(event, self._close)

    def _start(self, engine: Engine) -> None:
        # An evaluator starts again for each validation, counting epochs on: its bar covers the one in hand.
        epochs = engine.state.max_epochs if not isinstance(engine, Evaluator) else 1
        done = engine.state.iteration if not isinstance(engine, Evaluator) else 0
        self._bar = tqdm(total=epochs * engine.state.epoch_length, initial=done, desc=self.desc, mininterval=1.0)

    def _advance(self, engine: Engine) -> None:
        if self._bar is not None:
            if self.loss is not None:
                terms = ", ".join(f"{name} {value:.4f}" for name, value in self.loss.terms_of_last_call().items())
                self._bar.set_postfix_str(f"epoch {engine.state.epoch}, {terms}", refresh=False)
            self._bar.update()

    def _close(self, engine: Engine, *error: BaseException) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if error:
            raise error[0]


class History:
    """A CSV with one row per epoch: the mean of every loss term, and the validation metrics where there are any.

    Rows that a resumed run will repeat are dropped when it starts. The sums of the epoch in hand are part of the
    trainer's state, which a checkpoint keeps. Of several processes it keeps those of the first, and the row of an epoch
    that was resumed in its middle is only nearly the mean over all. Settings that a resumed run has changed stand in
    the column ``changed``. The curves stand in ``report.html`` beside the table, which is written after each validation
    and at the end.

    Args:
        path: the CSV.
        loss: whose terms are averaged.
        evaluator: whose metrics are written with the epoch in which they were computed. Of several processes the first
            one writes, what all have seen.
        title: of the page.
    """

    def __init__(self, path: str | Path, loss: RegistrationLoss, evaluator: Evaluator, title: str = "Training") -> None:
        self.path = Path(path)
        self.loss = loss
        self.evaluator = evaluator
        self.title = title
        self._provenance: dict[str, Any] = {}
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Register with a trainer, after validation and before what restores the trainer's state."""
        engine.state_dict_user_keys.append("term_sums")
        engine.state.term_sums = {}
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write_row)
        engine.add_event_handler(Events.COMPLETED, self._write_page)

    def _start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        self._provenance = provenance()
        rows = [row for row in read_csv(self.path) if int(row["epoch"]) <= engine.state.epoch]
        self._started -= float(rows[-1]["seconds"]) if rows else 0.0
        self._replace(rows)

    def _add(self, engine: Engine) -> None:
        sums = engine.state.term_sums
        for name, value in self.loss.terms_of_last_call().items():
            total, steps = sums.get(name, (0.0, 0))
            sums[name] = (total + value, steps + 1)

    def _write_row(self, engine: Engine) -> None:
        state = engine.state
        row: dict[str, Any] = {"epoch": state.epoch, "iteration": state.iteration}
        row["seconds"] = round(time.monotonic() - self._started, 1)
        row |= {name: float(f"{value:.8g}") for name, value in _means(engine).items()}
        if self.evaluator.state.epoch == state.epoch:
            metrics = {k: float(v) for k, v in self.evaluator.state.metrics.items() if isinstance(v, int | float)}
            row |= {f"val_{name}": float(f"{value:.8g}") for name, value in metrics.items()}
            logger.info("epoch %d: %s", state.epoch, ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()))
        changed = getattr(state, "changes", {}).get(state.epoch)
        row |= {} if changed is None else {"changed": changed}
        state.term_sums = {}
        self._replace([*read_csv(self.path), row])
        if self.evaluator.state.epoch == state.epoch:
            self._write_page(engine)

    def _write_page(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            page = self.path.with_name("report.html")
            write_training_report(page, self.title, read_csv(self.path), self._provenance)

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        if idist.get_rank() != 0:
            return
        if not rows:
            self.path.unlink(missing_ok=True)
            return
        write_csv(self.path, [{name: str(value) for name, value in row.items()} for row in rows])


def _means(engine: Engine) -> dict[str, float]:
    """Mean of each term over the iterations of the epoch that had it, and over all processes."""
    sums: dict[str, tuple[float, int]] = engine.state.term_sums
    # A term of labels may have been seen by some processes only.
    gathered: Any = idist.all_gather([sums]) if idist.get_world_size() > 1 else [[sums]]
    every = [process for (process,) in gathered]
    totals = {name: [process[name] for process in every if name in process] for name in dict.fromkeys(chain(*every))}
    return {name: sum(t for t, _ in parts) / sum(steps for _, steps in parts) for name, parts in totals.items()}

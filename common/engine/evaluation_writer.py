# SPDX-License-Identifier: Apache-2.0
"""What an evaluation leaves behind: tables, a summary, a page to read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from common.engine.batch import optimisation_of, registered
from common.engine.clock import NetworkClock
from common.engine.kept_pairs import KeptPairs
from common.io.provenance import peak_memory
from common.io.tables import read_csv
from common.metrics.handlers import RegistrationMetrics
from common.report.evaluation import picture, refuse_existing, write_evaluation
from common.report.viewer import ViewedPair, ViewedScan
from common.spatial import warp


class EvaluationWriter:
    """Writes ``cases.csv`` (per pair), ``labels.csv`` (per pair and label), ``summary.json`` and ``report.html``.

    Every figure stands beside its value before registration, and so does the loss, with its ``io_steps``, where there
    was an optimisation on the pair itself. Seconds, and those of the processor, are those of the network on one pair,
    without reading and measuring; pairs of one batch share its time. The summary has the network's ``parameters``, too.

    Args:
        output_dir: folder of the four files.
        metrics: the metric that measures the pairs, attached to the same evaluator.
        title: of the page.
        history: ``history.csv`` of the training, shown as curves where it exists.
        overwrite: whether files of an earlier evaluation may be replaced.

    Raises:
        InputError: when there is an evaluation in the folder and ``overwrite`` is not set.
    """

    def __init__(
        self,
        output_dir: str | Path,
        metrics: RegistrationMetrics,
        title: str,
        history: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metrics = metrics
        self.title = title
        self.history = history
        refuse_existing(self.output_dir, overwrite)
        self._clock = NetworkClock()
        self._further: list[dict[str, float]] = []
        self._pairs: KeptPairs[dict[str, Any]] = KeptPairs()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after its metrics."""
        self._clock.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _keep(self, engine: Engine) -> None:
        """Keep what the page shows of the pairs so far, by the error of landmarks, else by Dice, else by order."""
        pairs = registered(engine.state.output)
        costs = {name: getattr(self._clock, name) / len(pairs) for name in ("seconds", "cpu_seconds")}
        self._further += [{**_optimisation(pair), **costs} for pair in pairs]
        for case, pair in zip(self.metrics.cases[-len(pairs) :], pairs, strict=True):
            kept = {name: value for name, value in pair.items() if not name.endswith("_label")}
            score = -float(case["tre"]) if "tre" in case else float(case.get("dice", math.nan))
            self._pairs.add(score, {name: _for_pictures(name, value) for name, value in kept.items()})

    def _write(self, engine: Engine) -> None:
        cases = [{**case, **further} for case, further in zip(self.metrics.cases, self._further, strict=True)]
        panels, viewer = self._pictures()
        write_evaluation(
            self.output_dir,
            self.title,
            cases,
            panels,
            figures={name: {"mean": value} for name, value in peak_memory(engine.state.device).items()},
            details={"parameters": sum(weights.numel() for weights in engine.network.parameters())},
            history=read_csv(self.history) if self.history else [],
            viewer=viewer,
        )

    def _pictures(self) -> tuple[list[tuple[str, bytes]], list[ViewedPair]]:
        """The worst, the best and a pair near the median as panels and for the slice viewer."""
        panels, viewer = [], []
        for name, (score, pair) in self._pairs.worst_median_best().items():
            moving, fixed, ddf = (pair[key].float() for key in ("moving", "fixed", "ddf"))
            warped = warp(moving[None], ddf[None])[0]
            text = "" if math.isnan(score) else f", Dice {score:.3f}" if score >= 0 else f", TRE {-score:.2f}"
            caption = f"{name}: {pair['moving_id']} to {pair['fixed_id']}{text}"
            affine = pair["affine"]
            panels.append((caption, picture(moving=moving, fixed=fixed, warped=warped, ddf=ddf, affine=affine)))
            viewer.append(
                ViewedPair(
                    caption,
                    moving=ViewedScan(moving),
                    fixed=ViewedScan(fixed),
                    warped={"Warped": ViewedScan(warped)},
                    affine=affine,
                )
            )
        return panels, viewer


def _optimisation(pair: Mapping[str, Any]) -> dict[str, float]:
    """Columns of what came of the optimisation on a pair."""
    names = {"before": "loss_before", "after": "loss", "steps": "io_steps"}
    return {names[name]: value for name, value in optimisation_of(pair).items() if name in names}


def _for_pictures(name: str, value: Any) -> Any:
    """Up to sixteen pairs are kept: images at eight bits of precision, fields at hundredths of a voxel."""
    if not isinstance(value, Tensor):
        return value
    kinds = {"moving": torch.bfloat16, "fixed": torch.bfloat16, "ddf": torch.float16}
    return value.to("cpu", kinds.get(name, value.dtype))

# SPDX-License-Identifier: Apache-2.0
"""What evaluation and inference leave behind: tables, a summary, a page to read, warped images and fields."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from common.checks import InputError
from common.engine.batch import registered
from common.engine.clock import NetworkClock
from common.engine.provenance import peak_memory_gb, provenance
from common.io.panels import as_png, panel
from common.io.report import write_report
from common.io.tables import read_csv, write_csv, write_json
from common.io.viewer import Scan, ViewedPair
from common.metrics.handlers import RegistrationMetrics
from common.spatial import warp

EVALUATION_FILES = ("cases.csv", "labels.csv", "summary.json", "report.html")
Item = TypeVar("Item")


class EvaluationWriter:
    """Writes ``cases.csv`` (per pair), ``labels.csv`` (per pair and label), ``summary.json`` and ``report.html``.

    Every figure stands beside its value before registration. Seconds are those of the network on one pair, without
    reading and measuring; pairs of one batch share its time.

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
        self._seconds: list[float] = []
        self._pairs: list[tuple[float, dict[str, Any]]] = []

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator, after its metrics."""
        self._clock.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _keep(self, engine: Engine) -> None:
        """Keep the worst, the median and the best pair so far, by Dice (by order where there are no labels)."""
        pairs = registered(engine.state.output)
        self._seconds += [self._clock.seconds / len(pairs)] * len(pairs)
        for case, pair in zip(self.metrics.cases[-len(pairs) :], pairs, strict=True):
            score = float(case.get("dice", len(self._pairs)))
            kept = {name: value for name, value in pair.items() if not name.endswith("_label")}
            self._pairs.append((score, {name: _for_pictures(name, value) for name, value in kept.items()}))
            if len(self._pairs) > 16:
                # A pair is four volumes: thin out evenly by rank, which keeps both ends and nearly the middle.
                self._pairs.sort(key=lambda item: item[0])
                self._pairs = [*self._pairs[:6:2], *self._pairs[6:11], *self._pairs[-1:10:-2][::-1]]

    def _write(self, engine: Engine) -> None:
        cases = [{**case, "seconds": seconds} for case, seconds in zip(self.metrics.cases, self._seconds, strict=True)]
        panels, viewer = self._pictures()
        write_evaluation(
            self.output_dir,
            self.title,
            cases,
            panels,
            figures={"peak_memory_gb": {"mean": round(peak_memory_gb(engine.state.device), 3)}},
            history=read_csv(self.history) if self.history else [],
            viewer=viewer,
        )

    def _pictures(self) -> tuple[list[tuple[str, bytes]], list[ViewedPair]]:
        """The worst, the median and the best pair as panels and for the slice viewer."""
        panels, viewer = [], []
        for name, (score, pair) in worst_median_best(self._pairs, key=lambda item: item[0]).items():
            fixed, moving, ddf = (pair[key].float() for key in ("fixed", "moving", "ddf"))
            warped = warp(moving[None], ddf[None])[0]
            text = f", Dice {score:.3f}" if "dice" in self.metrics.cases[-1] else ""
            caption = f"{name}: {pair['moving_id']} to {pair['fixed_id']}{text}"
            affine = pair["affine"] if ddf.ndim == 4 else None
            spacing = None if affine is None else affine[:3, :3].norm(dim=0).tolist()
            panels.append((caption, picture(fixed, moving, warped, ddf, spacing)))
            viewer.append(ViewedPair(caption, Scan(fixed), Scan(moving), {"Warped": Scan(warped)}, affine))
        return panels, viewer


def write_evaluation(
    output_dir: Path,
    title: str,
    measured: Sequence[Mapping[str, Any]],
    panels: Sequence[tuple[str, bytes]],
    *,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    details: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    viewer: Sequence[ViewedPair] = (),
    label_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Write the four files of an evaluation and print its table.

    Args:
        output_dir: folder of the files.
        title: of the page.
        measured: per pair what :class:`common.metrics.handlers.RegistrationMetrics` keeps as ``cases``, and further
            columns.
        panels: (caption, PNG) for the page.
        figures: further figures for the summary.
        details: further entries of ``summary.json``.
        history: rows of the training's ``history.csv``, shown as curves.
        viewer: pairs whose slices can be looked at on the page.
        label_names: names of structures, shown behind the numbers.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: when a file cannot be written.
    """
    cases = [{k: v for k, v in case.items() if not isinstance(v, Mapping)} for case in measured]
    labels = _rows_per_label(measured)
    summary = {**_summary(cases), **(figures or {})}
    content: dict[str, Any] = {
        "title": title,
        "pairs": len(cases),
        "metrics": summary,
        **(details or {}),
        "provenance": provenance(),
    }
    write_csv(output_dir / "cases.csv", cases)
    write_csv(output_dir / "labels.csv", labels)
    write_json(output_dir / "summary.json", content)
    write_report(
        output_dir / "report.html",
        title=title,
        summary=summary,
        cases=cases,
        labels=labels,
        history=history,
        panels=panels,
        provenance=content["provenance"],
        viewer=viewer,
        label_names=label_names,
    )
    print(summary_table(summary, len(cases)))
    print(f"Tables and report: {output_dir / 'report.html'}")
    return content


def refuse_existing(output_dir: Path, overwrite: bool) -> None:
    """Refuse a folder with an evaluation in it.

    Raises:
        InputError: naming its files, unless ``overwrite``.
    """
    existing = [name for name in EVALUATION_FILES if (output_dir / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{output_dir} holds an evaluation already ({', '.join(existing)}): choose another folder, or "
            "replace it with --overwrite True."
        )


def worst_median_best(items: Sequence[Item], key: Callable[[Item], float]) -> dict[str, Item]:
    """Which pairs a page shows; the only one, or the worst of two, where there are no three."""
    ranked = sorted(items, key=key)
    if len(ranked) < 3:
        return {"pair": ranked[0]}
    return {"worst pair": ranked[0], "median pair": ranked[len(ranked) // 2], "best pair": ranked[-1]}


def picture(
    fixed: Tensor, moving: Tensor, warped: Tensor, ddf: Tensor, spacing: Sequence[float] | None = None
) -> bytes:
    """The panel of a pair as PNG; arguments as of :func:`common.io.panels.panel`."""
    return as_png(panel(fixed, moving, warped, ddf, spacing=spacing))


def summary_table(summary: Mapping[str, Mapping[str, float]], pairs: int) -> str:
    """Text for a terminal: each figure before and after."""
    lines = [f"{pairs} pairs" + " " * 12 + "before      after"]
    for name, entry in summary.items():
        before = f"{entry['before']:10.4f}" if "before" in entry else " " * 10
        spread = f" ± {entry['std']:.4f}" if "std" in entry else ""
        lines.append(f"{name:<18}{before} {entry['mean']:10.4f}{spread}")
    return "\n".join(lines)


def _summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the pairs that have a value, and their mean before registration."""
    names = [name for name, value in cases[0].items() if isinstance(value, float) and not name.endswith("_before")]
    summary: dict[str, dict[str, float]] = {}
    for name in names:
        counted = [case for case in cases if case[name] == case[name]]
        values = [case[name] for case in counted]
        if values:
            summary[name] = {"mean": statistics.fmean(values)}
            # A label that warping lost has an infinite distance, and so has the mean; no spread is left to state.
            if all(map(math.isfinite, values)):
                summary[name]["std"] = statistics.pstdev(values)
            before = [case[f"{name}_before"] for case in counted if f"{name}_before" in case]
            if before:
                summary[name]["before"] = statistics.fmean(before)
    return summary


def _rows_per_label(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        tables = {name.removesuffix("_per_label"): table for name, table in case.items() if name.endswith("_per_label")}
        for label in next(iter(tables.values()), {}):
            values = {name: float(table[label]) for name, table in tables.items()}
            rows.append({"fixed_id": case["fixed_id"], "moving_id": case["moving_id"], "label": label, **values})
    return rows


def _for_pictures(name: str, value: Any) -> Any:
    """Up to sixteen pairs are kept: images at eight bits of precision, fields at hundredths of a voxel."""
    if not isinstance(value, Tensor):
        return value
    kinds = {"moving": torch.bfloat16, "fixed": torch.bfloat16, "ddf": torch.float16}
    return value.to("cpu", kinds.get(name, value.dtype))

# SPDX-License-Identifier: Apache-2.0
"""Several methods on the same pairs as one page: table, box plots, Dice per label, slices with a method switch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from common.io.files import write_bytes
from common.report.box_plots import NOTE, BoxRow, Series, box_rows, series_kind
from common.report.charts import number
from common.report.page import cell, document, figure, foot, headline, scrolled
from common.report.pages import label_title, mean_of, number_of
from common.report.viewer import PARTS, ViewedPair, viewer_section

DRAWN = ("dice", "hd95", "tre", "ndv", "sdlogj")
"""Figures that get a chart; the others stand in the table only."""
BEFORE = "no registration"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation of one method wrote: see ``EvaluationWriter`` and ``evaluate_fields``.

    Attributes:
        metrics: figure to ``mean``, ``std`` and, where known, ``before``.
        cases: rows of ``cases.csv``, values as numbers or text.
        labels: rows of ``labels.csv``.
    """

    metrics: Mapping[str, Mapping[str, float]]
    cases: Sequence[Mapping[str, Any]]
    labels: Sequence[Mapping[str, Any]]


def write_comparison(
    path: str | Path,
    title: str,
    methods: Mapping[str, Evaluation],
    viewer: Sequence[ViewedPair] = (),
    provenance: Mapping[str, Any] | None = None,
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Write the page, replacing one that is there.

    Args:
        path: the HTML file.
        title: heading of the page.
        methods: name to its evaluation, in the order of the page.
        viewer: pairs whose slices can be looked at, with one warped image per method.
        provenance: what the result was made with, shown at the foot.
        label_names: names of structures.

    Raises:
        InputError: when the file cannot be written.
    """
    pairs = max((len(evaluation.cases) for evaluation in methods.values()), default=0)
    counted = f"{len(methods)} methods on {pairs} pair{'' if pairs == 1 else 's'}; mean ± standard deviation over pairs"
    note = f'<p class="note">{counted}, the best mean of each column in bold.</p>'
    sections = [
        f"<header><h1>{escape(title)}</h1>{note}</header>",
        _table(methods),
        _figures_section(methods),
        _labels_section(methods, label_names or {}),
        viewer_section(viewer),
        foot(provenance or {}),
    ]
    write_bytes(path, document(title, sections, *(PARTS if viewer else ())))


def _table(methods: Mapping[str, Evaluation]) -> str:
    names = headline({name: None for method in methods.values() for name in method.metrics}.keys())
    before = {name: value for name in names if (value := _before(methods, name)) is not None}
    titles = [figure(name) for name in names]
    heads = "".join(cell("th", entry.title + (f", {entry.unit}" if entry.unit else ""), True) for entry in titles)
    rows = ""
    if before:
        cells = "".join(cell("td", number(before[name]) if name in before else "", True) for name in names)
        rows += f'<tr class="soft">{cell("th", BEFORE)}{cells}</tr>\n'
    for method, evaluation in methods.items():
        cells = "".join(_mean_cell(methods, evaluation.metrics.get(name), name) for name in names)
        rows += f"<tr>{cell('th', method)}{cells}</tr>\n"
    table = f"<table><thead><tr>{cell('th', 'Method')}{heads}</tr></thead><tbody>\n{rows}</tbody></table>"
    return f"<section>{scrolled(table, 'Table of methods')}</section>"


def _mean_cell(methods: Mapping[str, Evaluation], entry: Mapping[str, float] | None, name: str) -> str:
    if entry is None:
        return cell("td", "–", True)
    mean = number_of(entry["mean"])
    known = [number_of(method.metrics[name]["mean"]) for method in methods.values() if name in method.metrics]
    known = [value for value in known if not math.isnan(value)]
    better = figure(name).best
    is_best = better is not None and len(known) > 1 and mean == better(known)
    spread = f" ± {number(entry['std'])}" if "std" in entry else ""
    return cell("td", number(mean) + spread, True, "best" if is_best else "")


def _before(methods: Mapping[str, Evaluation], name: str) -> float | None:
    """Mean before registration: the pairs are the same, so that of the first method that states it."""
    stated = [method.metrics[name]["before"] for method in methods.values() if "before" in method.metrics.get(name, {})]
    return number_of(stated[0]) if stated else None


def _figures_section(methods: Mapping[str, Evaluation]) -> str:
    charts = "".join(_chart(methods, name) for name in DRAWN)
    return f'<section><h2>Over pairs</h2><p class="note">{NOTE}</p>{charts}</section>' if charts else ""


def _chart(methods: Mapping[str, Evaluation], name: str) -> str:
    """Box plots of one figure, a row per method; empty when none of them has it."""
    rows = []
    before = _column(methods, f"{name}_before", "cases")
    if before:
        rows.append(BoxRow(BEFORE, [Series(BEFORE, "before", before)], number(mean_of(before))))
    for index, (method, evaluation) in enumerate(methods.items()):
        values = [number_of(case.get(name)) for case in evaluation.cases]
        rows.append(BoxRow(method, [Series(method, series_kind(index), values)], number(mean_of(values))))
    if not any(math.isfinite(value) for row in rows[bool(before) :] for value in row.series[0].values):
        return ""
    title, unit, *_ = figure(name)
    heading = title + (f", {unit}" if unit else "")
    return f'<figure class="figure"><figcaption>{escape(heading)}</figcaption>{box_rows(rows)}</figure>'


def _column(methods: Mapping[str, Evaluation], name: str, table: str) -> list[float]:
    """Finite values of a column of the first method that has it."""
    for evaluation in methods.values():
        values = [number_of(row.get(name)) for row in getattr(evaluation, table)]
        if any(math.isfinite(value) for value in values):
            return values
    return []


def _labels_section(methods: Mapping[str, Evaluation], names: Mapping[int, str]) -> str:
    tables = {method: _by_label(evaluation.labels, "dice") for method, evaluation in methods.items()}
    before: dict[str, list[float]] = {}
    for evaluation in methods.values():
        before = before or _by_label(evaluation.labels, "dice_before")
    rows = []
    for label in dict.fromkeys(label for table in tables.values() for label in table):
        series = [Series(BEFORE, "before", before[label])] if label in before else []
        series += [
            Series(method, series_kind(index), table.get(label, []))
            for index, (method, table) in enumerate(tables.items())
        ]
        best = max((mean_of(table[label]) for table in tables.values() if label in table), default=math.nan)
        rows.append(BoxRow(label_title(label, names), series, number(best)))
    if not rows:
        return ""
    keys = f'<li><span class="key before"></span>{BEFORE}</li>' if before else ""
    keys += "".join(
        f'<li><span class="{series_kind(index)}"><span class="key series"></span></span>{escape(method)}</li>'
        for index, method in enumerate(methods)
    )
    note = f'<p class="note">Over pairs, 0 to 1; the number is the best mean.</p><ul class="keys">{keys}</ul>'
    return f"<section><h2>Dice per label</h2>{note}{box_rows(rows, (0.0, 1.0))}</section>"


def _by_label(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, list[float]]:
    """Finite values per label."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = number_of(row.get(name))
        if math.isfinite(value):
            values.setdefault(str(row["label"]), []).append(value)
    return values

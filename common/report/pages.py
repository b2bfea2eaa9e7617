# SPDX-License-Identifier: Apache-2.0
"""An evaluation or a training run as one HTML page that needs nothing else: no network, everything inside."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from common.io.files import write_bytes
from common.report.box_plots import NOTE, BoxRow, Series, box_rows
from common.report.charts import label_bars, line_chart, number
from common.report.page import VARIANTS, cases_table, document, figure, foot, headline, scrolled
from common.report.viewer import PARTS, ViewedPair, viewer_section

PROGRESS = ("epoch", "iteration", "seconds", "changed")


def write_report(
    path: str | Path,
    title: str,
    summary: Mapping[str, Mapping[str, float]],
    cases: Sequence[Mapping[str, Any]],
    labels: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    panels: Sequence[tuple[str, bytes]],
    provenance: Mapping[str, Any] | None = None,
    viewer: Sequence[ViewedPair] = (),
    label_names: Mapping[int, str] | None = None,
) -> None:
    """Write the page, replacing one that is there.

    Args:
        path: the HTML file.
        title: heading of the page.
        summary: figure name to ``mean`` and, where known, ``std`` over pairs and ``before`` (mean before registration).
            Fractions of folding and NDV in percent.
        cases: one row per pair; entries that are neither text nor number are left out.
        labels: one row per pair and label, as ``labels.csv`` has it, or one row per label with means: ``label``,
            ``dice`` and, where known, ``dice_before``, as numbers or text; rows without Dice are left out. Several
            rows of one label become box plots, single ones bars.
        history: one row per epoch as ``history.csv`` has it, values as numbers or text: ``epoch``, loss terms, and
            validation metrics as ``val_...``.
        panels: (caption, PNG) of some pairs.
        provenance: what the result was made with, shown at the foot.
        viewer: pairs whose slices can be looked at.
        label_names: names of structures, shown behind the numbers.

    Raises:
        InputError: when the file cannot be written.
    """
    sections = [
        _header(title, summary, len(cases)),
        labels_section(labels, label_names or {}),
        _panels_section(panels),
        viewer_section(viewer),
        _history_section(history),
        cases_table(cases),
        foot(provenance or {}),
    ]
    write_bytes(path, document(title, sections, *(PARTS if viewer else ())))


def write_training_report(
    path: str | Path, title: str, history: Sequence[Mapping[str, Any]], provenance: Mapping[str, Any] | None = None
) -> None:
    """Write the page of a training run: where it stands, and its curves.

    Args:
        path: the HTML file, replaced if it is there.
        title: heading of the page.
        history: rows of ``history.csv``; see ``write_report``.
        provenance: what the run was made with.

    Raises:
        InputError: when the file cannot be written.
    """
    last = history[-1] if history else {}
    done = f"{last.get('epoch', 0)} epochs, {last.get('iteration', 0)} iterations"
    seconds = number_of(last.get("seconds"))
    if math.isfinite(seconds):
        done += f", {_duration(seconds)}"
    header = f'<header><h1>{escape(title)}</h1><p class="note">{escape(done)}.</p></header>{_best_tiles(history)}'
    sections = [header, _history_section(history), foot(provenance or {})]
    write_bytes(path, document(title, sections))


def labels_section(labels: Sequence[Mapping[str, Any]], names: Mapping[int, str]) -> str:
    """Dice per label, before and after, as box plots or, where only means are known, as bars."""
    rows = [row for row in labels if math.isfinite(number_of(row.get("dice")))]
    if not rows:
        return ""
    has_before = any(math.isfinite(number_of(row.get("dice_before"))) for row in rows)
    keys = '<span class="key after"></span>after registration'
    if has_before:
        keys = '<span class="key before"></span>before <span class="key after"></span>after registration'
    if len({str(row["label"]) for row in rows}) == len(rows):
        chart = label_bars([_mean_row(row, names) for row in rows])
        keys += "; mean over pairs, 0 to 1."
    else:
        chart = box_rows(_label_rows(rows, names, has_before), (0.0, 1.0))
        keys += f"; over pairs, 0 to 1, numbers are means. {NOTE}"
    return f'<section><h2>Dice per label</h2><p class="note">{keys}</p>{chart}</section>'


def label_title(label: Any, names: Mapping[int, str]) -> str:
    """A label as the page shows it: its number and, where known, its name."""
    text = str(label)
    name = names.get(int(text)) if text.isdigit() else None
    return f"{text} {name}" if name else text


def number_of(value: Any) -> float:
    """A cell of a table as a number; NaN where it is empty or no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def mean_of(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN when nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _mean_row(row: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    means = {name: number_of(row[name]) for name in ("dice_before", "dice") if row.get(name) not in (None, "")}
    return {"label": label_title(row["label"], names), **means}


def _label_rows(rows: Sequence[Mapping[str, Any]], names: Mapping[int, str], has_before: bool) -> list[BoxRow]:
    listed = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == label]
        after, before = ([number_of(row.get(name)) for row in own] for name in ("dice", "dice_before"))
        series = [Series("after", "after", after)]
        text = number(mean_of(after))
        if has_before:
            series.insert(0, Series("before", "before", before))
            text = f"{number(mean_of(before))} → {text}"
        listed.append(BoxRow(label_title(label, names), series, text))
    return listed


def _header(title: str, summary: Mapping[str, Mapping[str, float]], pairs: int) -> str:
    tiles = "".join(_tile(name, summary[name]) for name in headline(summary))
    counted = f"{pairs} pair" + ("" if pairs == 1 else "s")
    return (
        f'<header><h1>{escape(title)}</h1><p class="note">{counted}; mean ± standard deviation over pairs.</p></header>'
        f'\n<div class="tiles">{tiles}</div>'
    )


def _tile(name: str, entry: Mapping[str, float]) -> str:
    title, unit, meaning, _ = figure(name)
    value, kind = number(entry["mean"]), "tile"
    spread = f"± {number(entry['std'])}" if "std" in entry else ""
    if name == "dice" and "before" in entry:
        kind = "tile main"
        value = f'<span class="from">{number(entry["before"])} →</span> {value}'
    elif "before" in entry:
        spread += f"{', ' if spread else ''}before {number(entry['before'])}"
    return (
        f'<div class="{kind}" title="{escape(meaning)}"><div class="name">{escape(title)}</div>'
        f'<div class="value">{value} <small>{unit}</small></div><div class="more">{spread}</div></div>'
    )


def _best_tiles(history: Sequence[Mapping[str, Any]]) -> str:
    """Best validated value of each figure that has a better direction, and the epoch it was reached in."""
    tiles = []
    for name in headline({key.removeprefix("val_") for row in history for key in row if key.startswith("val_")}):
        measured = [(number_of(row.get(f"val_{name}")), row) for row in history]
        measured = [item for item in measured if math.isfinite(item[0])]
        best = figure(name).best
        if best is None or not measured:
            continue
        value, row = best(measured, key=lambda item: item[0])
        entry = {"mean": value}
        before = number_of(row.get(f"val_{name}_before"))
        if math.isfinite(before):
            entry["before"] = before
        tile = _tile(name, entry)
        more = f'<div class="more">best validation, epoch {escape(str(row.get("epoch")))}'
        tiles.append(
            tile.replace('<div class="more">', f"{more}{', ' if name != 'dice' and 'before' in entry else ''}")
        )
    return f'\n<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _panels_section(panels: Sequence[tuple[str, bytes]]) -> str:
    if not panels:
        return ""
    figures = ""
    for caption, png in panels:
        source = base64.b64encode(png).decode()
        picture = f'<img alt="{escape(caption)}" src="data:image/png;base64,{source}">'
        title = f"<figcaption>{escape(caption)}</figcaption>"
        figures += f'<figure class="pair">{title}{scrolled(picture, f"Panel of {caption}")}</figure>'
    return f"<section><h2>Pairs</h2>{figures}</section>"


def _history_section(history: Sequence[Mapping[str, Any]]) -> str:
    columns = dict.fromkeys(key for row in history for key in row if key not in PROGRESS)
    shown = [name for name in columns if name.removeprefix("val_") not in VARIANTS and not name.endswith("_before")]
    charts = [_curve(history, name) for name in sorted(shown, key=lambda name: name.startswith("val_"))]
    if not any(charts):
        return ""
    note = '<p class="note">Over epochs. Losses are means over an epoch, before weighing.</p>'
    return f'<section><h2>Training</h2>{note}<div class="charts">{"".join(charts)}</div></section>'


def _curve(history: Sequence[Mapping[str, Any]], name: str) -> str:
    """One column over the epochs that have a value in it; empty when there are fewer than two."""
    rows = [row for row in history if row.get("epoch") not in (None, "") and row.get(name) not in (None, "")]
    if len(rows) < 2:
        return ""
    epochs, values, before = ([number_of(row.get(key)) for row in rows] for key in ("epoch", name, f"{name}_before"))
    title, unit, *_ = figure(name.removeprefix("val_"))
    heading = f"Validation {title}{', ' + unit if unit else ''}" if name.startswith("val_") else f"Loss {name}"
    return line_chart(heading, epochs, values, before if any(map(math.isfinite, before)) else None)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

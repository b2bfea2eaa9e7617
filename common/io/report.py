# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from common.io.report_charts import label_bars, line_chart, number
from common.io.tables import write_bytes


class Figure(NamedTuple):
    """How a figure of merit is shown."""

    title: str
    unit: str
    meaning: str


# In the order of the page; what is not listed follows under its own name.
FIGURES = {
    "dice": Figure("Dice", "", "overlap of labels, mean over labels and pairs"),
    "hd95": Figure("HD95", "", "95th percentile of the distance between label surfaces"),
    "fold_fraction": Figure("Folding", "%", "voxels with Jacobian determinant ≤ 0"),
    "ndv": Figure("NDV", "%", "non-diffeomorphic volume"),
    "sdlogj": Figure("SDlogJ", "", "spread of the logarithm of the Jacobian determinant"),
    "seconds": Figure("Time per pair", "s", "network only"),
    "peak_memory_gb": Figure("Peak memory", "GB", "of the whole process"),
}
# Variants of a figure above: in the table of pairs, but not among the headline numbers and curves.
VARIANTS = {
    "sdlogj_l2r": Figure("SDlogJ (L2R)", "", "as Learn2Reg computes it"),
    "sdlogj_l2r_masked": Figure("SDlogJ (L2R, foreground)", "", "the same inside the foreground"),
}
PROGRESS = ("epoch", "iteration", "seconds")


def write_report(
    path: str | Path,
    title: str,
    summary: Mapping[str, Mapping[str, float]],
    cases: Sequence[Mapping[str, Any]],
    labels: Sequence[Mapping[str, Any]],
    history: Sequence[Mapping[str, Any]],
    panels: Sequence[tuple[str, bytes]],
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the page, replacing one that is there.

    Args:
        path: the HTML file.
        title: heading of the page.
        summary: figure name to ``mean`` and, where known, ``std`` over pairs and ``before`` (mean before registration).
            Fractions of folding and NDV in percent.
        cases: one row per pair; entries that are neither text nor number are left out.
        labels: one row per label with ``label``, ``dice`` and, where known, ``dice_before``; rows without Dice are left
            out.
        history: one row per epoch as ``history.csv`` has it, values as numbers or text: ``epoch``, loss terms, and
            validation metrics as ``val_...``.
        panels: (caption, PNG) of some pairs.
        provenance: what the result was made with, shown at the foot.

    Raises:
        InputError: when the file cannot be written.
    """
    sections = [
        _header(title, summary, len(cases)),
        _labels_section(labels),
        _panels_section(panels),
        _history_section(history),
        _cases_section(cases),
        _footer(provenance or {}),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )
    write_bytes(path, page.encode())


def _header(title: str, summary: Mapping[str, Mapping[str, float]], pairs: int) -> str:
    names = [name for name in FIGURES if name in summary]
    names += [name for name in summary if name not in FIGURES and name not in VARIANTS]
    tiles = "".join(_tile(name, summary[name]) for name in names)
    counted = f"{pairs} pair" + ("" if pairs == 1 else "s")
    return (
        f'<header><h1>{escape(title)}</h1><p class="note">{counted}; mean ± standard deviation over pairs.</p></header>'
        f'\n<div class="tiles">{tiles}</div>'
    )


def _tile(name: str, entry: Mapping[str, float]) -> str:
    title, unit, meaning = _figure(name)
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


def _labels_section(labels: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for row in labels if row.get("dice") is not None]
    if not rows:
        return ""
    keys = '<span class="key after"></span>after registration'
    if any("dice_before" in row for row in rows):
        keys = '<span class="key before"></span>before <span class="key after"></span>after registration'
    note = f'<p class="note">{keys}; mean over pairs, 0 to 1.</p>'
    return f"<section><h2>Dice per label</h2>{note}{label_bars(rows)}</section>"


def _panels_section(panels: Sequence[tuple[str, bytes]]) -> str:
    if not panels:
        return ""
    figures = "".join(
        f'<figure class="pair"><figcaption>{escape(caption)}</figcaption><div class="scroll">'
        f'<img alt="{escape(caption)}" src="data:image/png;base64,{base64.b64encode(png).decode()}"></div></figure>'
        for caption, png in panels
    )
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
    epochs, values, before = ([_value(row.get(key)) for row in rows] for key in ("epoch", name, f"{name}_before"))
    title, unit, _ = _figure(name.removeprefix("val_"))
    heading = f"Validation {title}{', ' + unit if unit else ''}" if name.startswith("val_") else f"Loss {name}"
    return line_chart(heading, epochs, values, before if any(map(math.isfinite, before)) else None)


def _cases_section(cases: Sequence[Mapping[str, Any]]) -> str:
    columns = [
        name
        for name in dict.fromkeys(key for case in cases for key in case)
        if all(isinstance(case.get(name), str | int | float | None) for case in cases)
    ]
    if not columns:
        return ""
    numeric = {name for name in columns if any(isinstance(case.get(name), float) for case in cases)}
    head = "".join(_cell("th", _column(name), name in numeric) for name in columns)
    body = "".join(
        "<tr>" + "".join(_cell("td", number(case.get(name)), name in numeric) for name in columns) + "</tr>\n"
        for case in cases
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f'<section><h2>All pairs</h2><div class="scroll">{table}</div></section>'


def _cell(tag: str, text: str, is_number: bool) -> str:
    kind = ' class="number"' if is_number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"


def _footer(provenance: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in provenance.items()
        if value is not None
    )
    notes = "; ".join(f"{title}: {meaning}" for title, _, meaning in FIGURES.values())
    listed = f"<h2>Made with</h2><dl>{entries}</dl>" if entries else ""
    return f'<footer><h2>The figures</h2><p class="note">{escape(notes)}.</p>{listed}</footer>'


def _plain(value: Any) -> str:
    """A value of the provenance on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _figure(name: str) -> Figure:
    words = name.replace("_", " ")
    return {**FIGURES, **VARIANTS}.get(name) or Figure(words[:1].upper() + words[1:], "", "")


def _column(name: str) -> str:
    base = name.removesuffix("_before")
    title, unit, _ = _figure(base.removesuffix("_id"))
    return title + (" before" if base != name else "") + (f", {unit}" if unit else "")


def _value(text: Any) -> float:
    """A cell of the history; NaN where it is empty."""
    return float(text) if text not in (None, "") else math.nan

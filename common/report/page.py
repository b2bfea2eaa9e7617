# SPDX-License-Identifier: Apache-2.0
"""What all pages share: the frame of a document that needs nothing else, names of figures, tables, foot."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from common.report.charts import number

# The browser itself then refuses whatever would come from elsewhere.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


class Figure(NamedTuple):
    """How a figure of merit is shown; ``best`` is max or min where one direction is better."""

    title: str
    unit: str
    meaning: str
    best: Any = None


# In the order of the page; what is not listed follows under its own name.
FIGURES = {
    "dice": Figure("Dice", "", "overlap of labels, mean over labels and pairs", max),
    "hd95": Figure("HD95", "", "95th percentile of the distance between label surfaces", min),
    "tre": Figure("TRE", "mm", "target registration error, distance between landmarks", min),
    "inverse_consistency": Figure("Inverse consistency", "mm", "how far the way back misses where one started", min),
    "fold_fraction": Figure("Folding", "%", "voxels with Jacobian determinant ≤ 0", min),
    "ndv": Figure("NDV", "%", "non-diffeomorphic volume", min),
    "sdlogj": Figure("SDlogJ", "", "spread of the logarithm of the Jacobian determinant", min),
    "seconds": Figure("Time per pair", "s", "network only", min),
    "cpu_seconds": Figure("Processor time per pair", "s", "network only, all threads together", min),
    "peak_memory_gb": Figure("Peak memory", "GB", "of the whole process", min),
}
# Variants of a figure above: in the table of pairs, but not among the headline numbers and curves.
VARIANTS = {
    "tre_back": Figure("TRE, the way back", "mm", "the same of the moving image's landmarks, by the inverse", min),
    "inverse_consistency_max": Figure("Inverse consistency, largest", "mm", "the same, largest of all voxels", min),
    "sdlogj_l2r": Figure("SDlogJ (L2R)", "", "as Learn2Reg computes it", min),
    "sdlogj_l2r_masked": Figure("SDlogJ (L2R, foreground)", "", "the same inside the foreground", min),
}


def document(title: str, sections: Sequence[str], *parts: str) -> bytes:
    """A whole page in UTF-8.

    Args:
        title: of the window.
        sections: HTML, in order; empty ones are left out.
        parts: names of further style sheets and scripts beside this module, put into the page.
    """
    style = "".join(_text(name) for name in ("report.css", *parts) if name.endswith(".css"))
    script = "".join(f"<script>\n{_text(name)}</script>\n" for name in parts if name.endswith(".js"))
    page = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>\n{script}</body>\n</html>\n"
    )
    return page.encode()


def figure(name: str) -> Figure:
    """How a figure is shown; an unknown one under its own name."""
    if name.startswith("tre_") and name not in VARIANTS:
        # One per set of landmarks; the unit is that of the set.
        return FIGURES["tre"]._replace(title=f"TRE {name.removeprefix('tre_').replace('_', ' ')}", unit="")
    words = name.replace("_", " ")
    return {**FIGURES, **VARIANTS}.get(name) or Figure(words[:1].upper() + words[1:], "", "")


def headline(names: Collection[str]) -> list[str]:
    """Those names that belong at the head of a page, in its order."""
    return [name for name in FIGURES if name in names] + [
        name for name in names if name not in FIGURES and name not in VARIANTS
    ]


def column_title(name: str) -> str:
    """Head of a table's column: title, before or after, unit."""
    base = name.removesuffix("_before")
    title, unit, *_ = figure(base.removesuffix("_id"))
    return title + (" before" if base != name else "") + (f", {unit}" if unit else "")


def cases_table(cases: Sequence[Mapping[str, Any]]) -> str:
    """Section with one row per pair; entries that are neither text nor number are left out."""
    columns = [
        name
        for name in dict.fromkeys(key for case in cases for key in case)
        if all(isinstance(case.get(name), str | int | float | None) for case in cases)
    ]
    if not columns:
        return ""
    numeric = {name for name in columns if any(isinstance(case.get(name), float) for case in cases)}
    head = "".join(cell("th", column_title(name), name in numeric) for name in columns)
    body = "".join(
        "<tr>" + "".join(cell("td", number(case.get(name)), name in numeric) for name in columns) + "</tr>\n"
        for case in cases
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>"
    return f"<section><h2>All pairs</h2>{scrolled(table, 'Table of all pairs')}</section>"


def scrolled(content: str, name: str) -> str:
    """A frame that scrolls sideways, by keyboard too, where the page is narrower than its content."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}">{content}</div>'


def cell(tag: str, text: str, is_number: bool = False, kind: str = "") -> str:
    """A cell of a table."""
    kinds = " ".join(filter(None, ("number" if is_number else "", kind)))
    attribute = f' class="{kinds}"' if kinds else ""
    return f"<{tag}{attribute}>{escape(text)}</{tag}>"


def foot(provenance: Mapping[str, Any]) -> str:
    """What the figures mean, and what the result was made with."""
    entries = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in provenance.items()
        if value is not None
    )
    notes = "; ".join(f"{entry.title}: {entry.meaning}" for entry in FIGURES.values())
    listed = f"<h2>Made with</h2><dl>{entries}</dl>" if entries else ""
    return f'<footer><h2>The figures</h2><p class="note">{escape(notes)}.</p>{listed}</footer>'


def _plain(value: Any) -> str:
    """A value of the provenance on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")

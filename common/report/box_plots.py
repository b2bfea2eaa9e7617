# SPDX-License-Identifier: Apache-2.0
"""Box plots as HTML that gives way to any width; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from common.report.charts import number, ticks

COLOURS = 8
"""The style sheet's series colours m0, m1, ...; further series begin again."""
FEWEST = 5
"""Fewer values than this have no quartiles worth drawing: each is a dot."""
NOTE = (
    "Boxes span the middle half, with a line at the median; whiskers reach the last value within 1.5 box lengths, dots "
    f"lie beyond. Fewer than {FEWEST} values are drawn as dots."
)
_LONG_NAME = 4
_SHORT_TEXT = 6


class Series(NamedTuple):
    """Values drawn as one box: what they are, its class in the style sheet, and the values, NaN and inf left out."""

    name: str
    kind: str
    values: Sequence[float]


class BoxRow(NamedTuple):
    """Boxes under one name, and a text at its end."""

    name: str
    series: Sequence[Series]
    text: str


def series_kind(index: int) -> str:
    """Class of the n-th of several series."""
    return f"m{index % COLOURS}"


def box_rows(rows: Sequence[BoxRow], bounds: tuple[float, float] | None = None) -> str:
    """Rows of box plots over one scale.

    Args:
        rows: in order.
        bounds: ends of the scale, with lines at its quarters and no numbers; None finds round ones and writes them.

    Returns:
        A ``div`` element; empty when there is nothing finite to draw.
    """
    finite = [value for row in rows for series in row.series for value in series.values if math.isfinite(value)]
    if not finite:
        return ""
    marks = ticks(min(finite), max(finite)) if bounds is None else [bounds[0], bounds[1]]
    low, high = marks[0], marks[-1]
    body = "".join(_row(row, low, high) for row in rows)
    named = any(len(row.name) > _LONG_NAME for row in rows)
    short = all(len(row.text) <= _SHORT_TEXT for row in rows)
    kind = "bars boxes" + (" named" if named else "") + (" short" if short else "")
    if bounds is not None:
        return f'<div class="{kind}">{body}</div>'
    numbers = "".join(f'<b style="left:{_place(mark, low, high):.2f}%">{mark:.6g}</b>' for mark in marks)
    axis = (
        f'<div class="bar axis" aria-hidden="true"><span></span><div class="track">{numbers}</div><span></span></div>'
    )
    return f'<div class="{kind} single" style="--step:{100 / (len(marks) - 1):.4f}%">{body}{axis}</div>'


def _row(row: BoxRow, low: float, high: float) -> str:
    boxes = "".join(_box(series, low, high) for series in row.series)
    return (
        f'<div class="bar"><span>{escape(row.name)}</span><div class="track">{boxes}</div>'
        f"<span>{escape(row.text)}</span></div>"
    )


def _box(series: Series, low: float, high: float) -> str:
    """One box; read out as its median and count."""
    values = np.array(sorted(value for value in series.values if math.isfinite(value)))
    if not len(values):
        return f'<div class="box {series.kind}"></div>'
    left_out = len(series.values) - len(values)
    told = f"{series.name}: median {number(float(np.median(values)))} of {len(values)}" + (
        f", {left_out} without a finite value" if left_out else ""
    )
    drawn = _dots(values, low, high) if len(values) < FEWEST else _quartiles(values, low, high)
    return f'<div class="box {series.kind}" role="img" aria-label="{escape(told)}" title="{escape(told)}">{drawn}</div>'


def _quartiles(values: np.ndarray, low: float, high: float) -> str:
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    reach = 1.5 * (third - first)
    inside = values[(values >= first - reach) & (values <= third + reach)]
    beyond = values[(values < first - reach) | (values > third + reach)]
    span = [_place(value, low, high) for value in (inside[0], inside[-1], first, third, median)]
    return (
        f'<i class="whisker" style="left:{span[0]:.2f}%;width:{span[1] - span[0]:.2f}%"></i>'
        f'<i class="body" style="left:{span[2]:.2f}%;width:{span[3] - span[2]:.2f}%"></i>'
        f'<i class="median" style="left:{span[4]:.2f}%"></i>' + _dots(beyond, low, high)
    )


def _dots(values: np.ndarray, low: float, high: float) -> str:
    return "".join(f'<i class="dot" style="left:{_place(value, low, high):.2f}%"></i>' for value in values)


def _place(value: float, low: float, high: float) -> float:
    """Percent of the scale, kept inside it."""
    return 100 * min(max((float(value) - low) / ((high - low) or 1.0), 0.0), 1.0)

# SPDX-License-Identifier: Apache-2.0
"""Charts of a report as HTML and SVG text; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 24
_LONG_LABEL = 4


def number(value: Any) -> str:
    """A value as a reader wants it: three decimals, fewer for large and more for tiny ones; a dash for none."""
    if value is None or isinstance(value, str | bool):
        return "–" if value in (None, "") else str(value)
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = "0" if size == 0 else f"{value:.2g}" if size < 1e-3 else f"{value:.3f}" if size < 100 else f"{value:.1f}"
    return text.replace("-", "−", 1) if value < 0 else text


def line_chart(title: str, x: Sequence[float], y: Sequence[float], reference: Sequence[float] | None = None) -> str:
    """A curve over epochs as a figure.

    Args:
        title: what is drawn.
        x: epochs, ascending.
        y: value of each epoch; NaN and infinite values leave a gap.
        reference: what the curve is to be compared with, dashed; the value before registration.

    Returns:
        A ``figure`` element with an inline SVG, empty when there is no finite value.
    """
    shown = [value for value in [*y, *(reference or [])] if math.isfinite(value)]
    if not any(math.isfinite(value) for value in y):
        return ""
    y_ticks = ticks(min(shown), max(shown))
    x_ticks = [tick for tick in ticks(x[0], x[-1]) if x[0] <= tick <= x[-1] and tick == int(tick)]
    low, high = min(y_ticks[0], *shown), max(y_ticks[-1], *shown)

    def across(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - x[0]) / ((x[-1] - x[0]) or 1)

    def down(value: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / ((high - low) or 1)

    parts = []
    for tick in y_ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {down(tick):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for tick in x_ticks:
        parts.append(f'<text x="{across(tick):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{tick:.6g}</text>')
    for values, style in ((reference or [], ' class="reference"'), (y, "")):
        for run in _runs(x, values):
            points = " ".join(f"{across(a):.1f},{down(b):.1f}" for a, b in run)
            parts.append(f'<polyline{style} points="{points}"/>')
    last = next((a, b) for a, b in zip(reversed(x), reversed(y), strict=True) if math.isfinite(b))
    parts.append(f'<circle cx="{across(last[0]):.1f}" cy="{down(last[1]):.1f}" r="3"/>')
    end = f"{number(float(last[1]))} at the end" + (", dashed: before registration" if reference else "")
    name = escape(title)
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name} over epochs">{"".join(parts)}</svg>'
    return f"<figure><figcaption>{name} <span>{end}</span></figcaption>{svg}</figure>"


def label_bars(labels: Sequence[Mapping[str, Any]]) -> str:
    """One row per label with two bars, Dice before and after.

    Args:
        labels: each with ``label`` and ``dice``, and ``dice_before`` where known; values in [0, 1].

    Returns:
        A ``div`` element.
    """
    rows = []
    for entry in labels:
        before, after = entry.get("dice_before"), entry.get("dice")
        bars = "".join(
            f'<i class="{kind}" style="width:{100 * min(max(value, 0), 1):.1f}%"></i>'
            for kind, value in (("before", before), ("after", after))
            if value is not None and math.isfinite(value)
        )
        values = number(after) if before is None else f"{number(before)} → {number(after)}"
        rows.append(
            f'<div class="bar"><span>{escape(str(entry["label"]))}</span><div class="track">{bars}</div>'
            f"<span>{values}</span></div>"
        )
    named = any(len(str(entry["label"])) > _LONG_LABEL for entry in labels)
    return f'<div class="bars{" named" if named else ""}">{"".join(rows)}</div>'


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose [low, high]."""
    span = (high - low) or abs(high) or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _runs(x: Sequence[float], y: Sequence[float]) -> list[list[tuple[float, float]]]:
    """The stretches of a curve without gaps; a validation that is not done in every epoch leaves none."""
    runs: list[list[tuple[float, float]]] = [[]]
    for point in zip(x, y, strict=False):
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]

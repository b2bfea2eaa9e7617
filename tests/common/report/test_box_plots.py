# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from common.report.box_plots import COLOURS, BoxRow, Series, box_rows, series_kind


def one(values: Sequence[float], bounds: tuple[float, float] | None = (0.0, 10.0)) -> str:
    return box_rows([BoxRow("greedy", [Series("after", "after", values)], "text")], bounds)


def spans(chart: str, kind: str) -> list[list[float]]:
    """Left end, and width where there is one, of every mark of a kind, in percent."""
    styles = re.findall(rf'<i class="{kind}" style="([^"]*)"', chart)
    return [[float(part.split(":")[1].rstrip("%")) for part in style.split(";")] for style in styles]


def test_box_spans_the_quartiles_with_the_median_in_it() -> None:
    values = [1.0, 2.0, 3.0, 5.0, 6.0, 7.0, 9.0]
    first, median, third = np.quantile(values, (0.25, 0.5, 0.75))
    ((left, width),) = spans(one(values), "body")
    assert (left, width) == pytest.approx((10 * first, 10 * (third - first)))
    assert spans(one(values), "median") == [[10 * median]]


def test_whiskers_end_at_the_last_value_within_their_reach_and_dots_lie_beyond() -> None:
    chart = one([3.0, 4.0, 4.2, 4.4, 5.0, 9.5])
    ((left, width),) = spans(chart, "whisker")
    assert (left, left + width) == pytest.approx((30, 50))
    assert spans(chart, "dot") == [[95]]


def test_few_values_are_dots() -> None:
    assert spans(one([1.0, 2.0, 3.0, 4.0]), "dot") == [[10], [20], [30], [40]]
    assert spans(one([1.0, 2.0, 3.0, 4.0]), "body") == []


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    chart = one([1.0, 2.0, math.nan, math.inf])
    assert len(spans(chart, "dot")) == 2
    assert "2 without a finite value" in chart


def test_nothing_finite_is_an_empty_text() -> None:
    assert one([math.nan, math.inf]) == "" and box_rows([]) == ""


def test_free_scale_is_numbered_and_holds_all_values() -> None:
    chart = one([0.3, 0.4, 1.7], None)
    marks = [float(text) for text in re.findall(r"<b[^>]*>([^<]*)</b>", chart)]
    assert marks[0] <= 0.3 and marks[-1] >= 1.7 and len(marks) >= 3
    assert all(0 <= place <= 100 for (place,) in spans(chart, "dot"))


@pytest.mark.parametrize("values", [[5.0] * 6, [0.0] * 6, [1e-9, 2e-9, 1e-9, 0, 0, 0]])
def test_values_without_spread_can_be_drawn(values: list[float]) -> None:
    assert len(spans(one(values, None), "median")) == 1


def test_text_is_escaped() -> None:
    chart = box_rows([BoxRow("<b>", [Series('"<i x', "after", [1.0])], "<u>")])
    assert "<b>" not in chart.split("<b style")[0] and "<u>" not in chart and "<i x" not in chart


def test_colours_begin_again_after_the_last() -> None:
    assert series_kind(0) == series_kind(COLOURS) == "m0"

# SPDX-License-Identifier: Apache-2.0
"""The summary of an evaluation and its table for a terminal."""

from __future__ import annotations

import pytest

from common.report.evaluation import _summary, summary_table


def test_table_for_the_terminal_shows_before_and_after() -> None:
    text = summary_table({"dice": {"mean": 0.8, "std": 0.01, "before": 0.6}, "seconds": {"mean": 1.5}}, 3)
    assert text.splitlines()[1].split() == ["dice", "0.6000", "0.8000", "±", "0.0100"]
    assert "3 pairs" in text and "before" in text


def test_a_lost_label_leaves_an_infinite_mean_without_a_spread() -> None:
    summary = _summary([{"hd95": 2.0, "dice": 0.5}, {"hd95": float("inf"), "dice": 0.7}])
    assert summary["hd95"] == {"mean": float("inf")}
    assert summary["dice"] == pytest.approx({"mean": 0.6, "std": 0.1})


def test_pairs_without_a_common_label_count_neither_before_nor_after() -> None:
    nan = float("nan")
    summary = _summary([{"dice": 0.8, "dice_before": 0.6}, {"dice": nan, "dice_before": nan}])
    assert summary["dice"] == {"mean": 0.8, "std": 0.0, "before": 0.6}

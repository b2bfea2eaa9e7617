# SPDX-License-Identifier: Apache-2.0
"""The summary of an evaluation and its table for a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.report.evaluation import _summary, summary_table, write_evaluation


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


def test_figures_that_a_pair_has_not_are_empty_cells_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    thin = {"ndv": float("nan"), "sdlogj": 0.1, "undefined": {"ndv": "needs 3 voxels"}}
    pairs = [
        {"moving_id": "a", "fixed_id": "b", **thin},
        {"moving_id": "b", "fixed_id": "a", "ndv": 2.0, "sdlogj": 0.3},
    ]
    write_evaluation(tmp_path, "t", pairs, [])
    assert (tmp_path / "cases.csv").read_text().splitlines() == [
        "moving_id,fixed_id,ndv,sdlogj", "a,b,,0.1", "b,a,2,0.3",
    ]  # fmt: skip
    sentence = "No ndv for 1 of 2 pairs: it needs 3 voxels."
    assert sentence in capsys.readouterr().out.splitlines()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["undefined"] == [sentence] and summary["metrics"]["ndv"]["mean"] == 2

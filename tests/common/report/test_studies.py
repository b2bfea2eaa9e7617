# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from common.io.tables import read_csv
from common.report.studies import draw_memory, draw_sizes, write_tables

ROWS = [
    {"name": "A", "dice": 0.75, "dice_before": 0.6, "sdlogj_l2r_masked": 0.125, "steps": 1200, "parameters": 2014827},
    {"name": "B", "dice": 0.7, "dice_before": 0.6, "hd95": math.inf, "swap_error_voxels": 2e-6},
]


def test_a_table_has_what_was_before_and_a_dash_for_what_a_method_lacks(tmp_path: Path) -> None:
    text = write_tables(tmp_path, "methods", ROWS)
    assert text == (tmp_path / "methods.md").read_text()
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert header == ["", "Dice", "HD95", "SDlogJ (L2R, foreground) x 100", "parameters", "steps", "swap error, voxels"]
    assert rows == [
        ["before registration", "0.6000", "–", "–", "–", "–", "–"],
        ["A", "0.7500", "–", "12.50", "2,014,827", "1200", "–"],
        ["B", "0.7000", "∞", "–", "–", "–", "2.0e-06"],
    ]
    assert [row["dice"] for row in read_csv(tmp_path / "methods.csv")] == ["0.75", "0.7"]


@pytest.mark.parametrize(("suffix", "begin"), [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_picture_of_sizes_has_a_curve_for_each_source(suffix: str, begin: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"sizes{suffix}"
    draw_sizes(
        path,
        {2: {"dice": 0.6, "hd95": math.inf}, 5: {"dice": 0.7, "hd95": 3}},
        {10: {"dice": 0.76, "hd95": 3.5}},
        "ours",
        "theirs",
    )
    assert path.read_bytes().startswith(begin)


def test_only_what_was_measured_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    draw_sizes(tmp_path / "sizes.png", {5: {"dice": 0.7}, 2: {"dice": 0.6}}, {9: {"dice": 0.8}}, "ours", "theirs")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log" and axes.get_ylabel() == "Dice"
    curves = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert curves == {"ours": [[2, 0.6], [5, 0.7]], "theirs": [[9, 0.8]]}


def test_memory_and_time_are_drawn_over_the_edge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    figures = {edge: {"peak_gb": edge / 50, "step_cpu_seconds": edge / 10} for edge in (100, 50)}
    draw_memory(tmp_path / "memory.png", {"A": figures, "B": {}})
    memory, seconds = drawn[0].axes
    assert np.asarray(memory.lines[0].get_xydata()).tolist() == [[50, 1], [100, 2]]
    assert np.asarray(seconds.lines[0].get_xydata()).tolist() == [[50, 5], [100, 10]]
    assert memory.get_ylabel() == "GB of a step" and [text.get_text() for text in memory.get_xticklabels()] == [
        "50",
        "100",
    ]

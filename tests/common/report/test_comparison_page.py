# SPDX-License-Identifier: Apache-2.0
"""The page of several methods; how it behaves in a browser is in test_viewer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from common.report.comparison_page import Evaluation, write_comparison


def evaluation(dice: float, ndv: float) -> Evaluation:
    cases = [
        {"fixed_id": "a", "moving_id": str(k), "dice": f"{dice + 0.01 * k}", "dice_before": "0.5", "ndv": f"{ndv}"}
        for k in range(6)
    ]
    labels = [{**case, "label": str(label)} for case in cases for label in (2, 4)]
    metrics = {"dice": {"mean": dice, "std": 0.02, "before": 0.5}, "ndv": {"mean": ndv, "std": 0.0}}
    return Evaluation(metrics, cases, labels)


def page_of(folder: Path, methods: Mapping[str, Evaluation]) -> str:
    path = folder / "compare.html"
    write_comparison(path, "Comparison", methods, label_names={2: "Left Cortex"})
    return path.read_text(encoding="utf-8")


def cells(page: str) -> dict[str, list[str]]:
    """Cells of the table by the head of their row; the best ones start with an asterisk."""
    rows = re.findall(r"<tr[^>]*><th>([^<]*)</th>(.*?)</tr>", page)
    found = {name: re.findall(r'<td class="number( best)?">([^<]*)</td>', row) for name, row in rows}
    return {name: ["*" + text if best else text for best, text in row] for name, row in found.items() if row}


def test_table_has_a_row_per_method_and_marks_the_best_in_the_right_direction(tmp_path: Path) -> None:
    methods = {"greedy": evaluation(0.7, 0.1), "syn": evaluation(0.8, 0.3)}
    assert cells(page_of(tmp_path, methods)) == {
        "no registration": ["0.500", ""],
        "greedy": ["0.700 ± 0.020", "*0.100 ± 0"],
        "syn": ["*0.800 ± 0.020", "0.300 ± 0"],
    }


def test_figure_that_one_method_lacks_is_a_dash(tmp_path: Path) -> None:
    other = Evaluation({"dice": {"mean": 0.6}}, [], [])
    table = cells(page_of(tmp_path, {"greedy": evaluation(0.7, 0.1), "other": other}))
    assert table["other"] == ["0.600", "–"]


def test_single_method_is_not_the_best(tmp_path: Path) -> None:
    assert cells(page_of(tmp_path, {"greedy": evaluation(0.7, 0.1)}))["greedy"][0] == "0.700 ± 0.020"


def test_charts_have_a_box_per_method_and_before_registration(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"greedy": evaluation(0.7, 0.1), "syn": evaluation(0.8, 0.3)})
    dice, ndv = page.split('<figure class="figure">')[1:]
    assert [dice.split("</figure>")[0].count(f'class="box {kind}"') for kind in ("before", "m0", "m1")] == [1, 1, 1]
    assert [ndv.split("</figure>")[0].count(f'class="box {kind}"') for kind in ("before", "m0", "m1")] == [0, 1, 1]
    labels = page.split("<h2>Dice per label</h2>")[1]
    assert [labels.count(f'class="box {kind}"') for kind in ("before", "m0", "m1")] == [2, 2, 2]
    assert "2 Left Cortex" in labels


def test_page_without_pictures_has_no_script_and_text_is_escaped(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"<b>x": evaluation(0.7, 0.1), "y": evaluation(0.6, 0.1)})
    assert "<script" not in page and "<b>x" not in page and "&lt;b&gt;x" in page

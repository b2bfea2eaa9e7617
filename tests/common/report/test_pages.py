# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.report.charts import line_chart, number
from common.report.pages import write_report, write_training_report

VOID = {"meta", "img"}
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
CONTENT: dict[str, Any] = {
    "title": "EOIR on shapes",
    "summary": {
        "dice": {"mean": 0.91234, "std": 0.02, "before": 0.61},
        "fold_fraction": {"mean": 0.00012, "std": 0.0},
        "peak_memory_gb": {"mean": 3.2},
        "landmark_error": {"mean": 1.25},
    },
    "cases": [
        {"fixed_id": "s1", "moving_id": "s2", "dice": 0.9, "dice_before": 0.6, "hd95": math.inf, "per_label": {1: 0.5}},
        {"fixed_id": "s2", "moving_id": "s1", "dice": math.nan, "dice_before": 0.6, "hd95": 1.0, "per_label": {1: 0.5}},
    ],
    "labels": [{"label": 1, "dice": 0.8, "dice_before": 0.5}, {"label": 2, "dice": 0.7, "dice_before": 0.4}],
    "history": [
        {"epoch": "1", "iteration": "4", "seconds": "2.0", "lncc": "-0.1", "val_dice": "", "val_dice_before": ""},
        {"epoch": "2", "iteration": "8", "seconds": "4.0", "lncc": "-0.2", "val_dice": "0.7", "val_dice_before": "0.6"},
        {"epoch": "4", "iteration": "9", "seconds": "8.0", "lncc": "-0.3", "val_dice": "0.8", "val_dice_before": "0.6"},
    ],
    "panels": [("worst pair", PNG)],
    "provenance": {"versions": {"torch": "2.13.0"}, "command": ["run", "--lr", 1], "git": None},
}


class Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def page_of(tmp_path: Path, **changes: Any) -> Page:
    write_report(tmp_path / "report.html", **{**CONTENT, **changes})
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_page_is_well_formed_and_shows_every_section(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    headings = ["Dice per label", "Pairs", "Training", "All pairs", "The figures", "Made with"]
    assert [text for text in page.text if text in headings] == headings
    assert page.text.count("EOIR on shapes") == 2


def test_page_needs_nothing_from_the_network_and_runs_no_script(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert sources == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    style = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "url(" not in style and "@import" not in style


def rows_per_pair(count: int) -> list[dict[str, Any]]:
    """As ``labels.csv`` holds them: text, and nothing where a label is absent."""
    return [
        {"fixed_id": "a", "moving_id": str(k), "label": str(label), "dice": str(0.1 * k), "dice_before": "0.05"}
        for k in range(1, count + 1)
        for label in (3, 17)
    ] + [{"fixed_id": "a", "moving_id": "0", "label": "17", "dice": "", "dice_before": "nan"}]


def test_rows_per_pair_become_box_plots_with_means_and_names(tmp_path: Path) -> None:
    page = page_of(tmp_path, labels=rows_per_pair(7), label_names={17: "Left Hippocampus"})
    assert page.attributes.count(("class", "body")) == 4
    assert {"3", "17 Left Hippocampus", "0.050 → 0.400"} <= set(page.text)


def test_few_pairs_are_dots(tmp_path: Path) -> None:
    page = page_of(tmp_path, labels=rows_per_pair(3))
    assert ("class", "body") not in page.attributes
    assert page.attributes.count(("class", "dot")) == 12


def test_means_per_label_become_bars(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert ("style", "width:80.0%") in page.attributes and ("class", "body") not in page.attributes


def test_training_page_shows_curves_and_the_best_validation(tmp_path: Path) -> None:
    write_training_report(tmp_path / "report.html", "Training", CONTENT["history"], CONTENT["provenance"])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = "".join(page.text)
    assert page.tags.count("svg") == 2
    assert "4 epochs, 9 iterations, 8 s." in text
    assert "0.600 → 0.800 best validation, epoch 4" in text
    assert "script" not in page.tags


def test_training_page_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_training_report(tmp_path / "report.html", "Training", [])
    assert "0 epochs, 0 iterations." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_headline_shows_dice_before_and_after_and_figures_of_any_name(tmp_path: Path) -> None:
    text = "".join(page_of(tmp_path).text)
    assert "0.610 → 0.912" in text
    assert "0.00012 %" in text
    assert "Landmark error1.250" in text


def test_text_of_the_user_is_escaped(tmp_path: Path) -> None:
    evil = '<b onload="x">&amp;'
    page = page_of(
        tmp_path,
        title=evil,
        cases=[{"fixed_id": evil, "dice": 0.5}],
        labels=[{"label": evil, "dice": 0.5}],
        panels=[(evil, PNG)],
        history=[{"epoch": epoch, evil: 0.1} for epoch in (1, 2)],
        summary={evil: {"mean": 1.0}},
        provenance={evil: evil},
    )
    assert "b" not in page.tags
    assert page.text.count(evil) >= 5


def test_table_shows_text_and_numbers_and_leaves_nested_entries_out(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.tags.count("th") == 5
    assert {"Fixed", "Moving", "Dice before", "∞", "–"} <= set(page.text)


def test_each_loss_and_each_validated_figure_has_a_curve(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert page.tags.count("svg") == 2
    assert {"Loss lncc ", "Validation Dice "} <= set(page.text)


def test_single_epoch_makes_no_curve(tmp_path: Path) -> None:
    assert "svg" not in page_of(tmp_path, history=CONTENT["history"][:1]).tags


def test_sections_without_content_are_left_out(tmp_path: Path) -> None:
    page = page_of(tmp_path, summary={}, cases=[], labels=[{"label": 1}], history=[], panels=[], provenance=None)
    assert [tag for tag in page.tags if tag in ("table", "svg", "img", "dl", "section")] == []


def test_report_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        write_report(tmp_path / "file" / "report.html", **CONTENT)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.76543, "0.765"), (-0.5, "−0.500"), (1234.56, "1234.6"), (0.000123, "0.00012"), (7, "7")]
    + [(math.nan, "–"), (None, "–"), ("", "–"), (-math.inf, "−∞"), ("s1", "s1")],
)
def test_numbers_are_written_for_readers(value: Any, text: str) -> None:
    assert number(value) == text


def polylines(chart: str) -> list[list[tuple[float, float]]]:
    parts = chart.split('points="')[1:]
    points = [[point.split(",") for point in part.split('"')[0].split()] for part in parts]
    return [[(float(x), float(y)) for x, y in line] for line in points]


def test_curve_rises_with_its_values_and_breaks_where_there_are_none() -> None:
    first, second = polylines(line_chart("dice", [1, 2, 3, 4, 5], [0.1, 0.4, math.nan, 0.2, 0.3]))
    assert [len(first), len(second)] == [2, 2]
    heights = [y for _, y in first + second]
    assert heights[0] > heights[2] > heights[3] > heights[1]
    assert sorted(x for x, _ in first + second) == [x for x, _ in first + second]


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0, 5.0], [-3.0, -3.0], [1e-9, 2e-9], [-0.35, 1234.0]])
def test_curve_stays_inside_its_picture(values: list[float]) -> None:
    ((a, b),) = polylines(line_chart("x", [1, 2], values))
    assert all(0 <= x <= 340 and 0 <= y <= 170 for x, y in (a, b))


def test_curve_without_values_is_empty() -> None:
    assert line_chart("x", [1, 2], [math.nan, math.inf]) == ""

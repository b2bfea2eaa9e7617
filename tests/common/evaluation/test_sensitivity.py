# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.checks import InputError
from common.evaluation.sensitivity import BEGIN, END, Row, refresh_page, sensitivity_table

DICE = {
    ("as they are", False): (0.75, 0.625),
    ("turned", False): (0.25, 0.5),
    ("turned", True): (0.625, 0.75),
}


def rows() -> list[Row]:
    """Two pairs, whose Dice lie about those of ``DICE``, by two methods."""
    return [
        {"perturbation": name, "affine": affine, "method": method, "dice": mean + off, "cpu_seconds": 2 * seconds}
        for off in (-0.125, 0.125)
        for (name, affine), means in DICE.items()
        for method, mean, seconds in zip(("a", "b"), means, (1, 3), strict=True)
    ]


def test_table_has_means_over_pairs_and_the_largest_losses() -> None:
    lines = sensitivity_table(rows(), {"a": "network", "b": "Greedy"}).splitlines()
    assert lines[0] == "| moving scans | network | Greedy |"
    assert lines[2:6] == [
        "| as they are | 0.7500 | 0.6250 |",
        "| turned | 0.2500 | 0.5000 |",
        "| turned, `--affine true` | 0.6250 | 0.7500 |",
        "| CPU s, mean | 2.0 | 6.0 |",
    ]
    assert lines[-2:] == ["- network: 0.5000 (turned)", "- Greedy: 0.1250 (turned)"]


def test_where_nothing_is_lost_it_is_said() -> None:
    gained = [row for row in rows() if row["perturbation"] == "as they are" or row["affine"]]
    assert sensitivity_table(gained, {"b": "Greedy"}).splitlines()[-1] == "- Greedy: nothing"


def test_page_keeps_what_stands_around_the_table(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{BEGIN}\nold\n{END}\n\nText\n", encoding="utf-8")
    for text in ("new", "newer"):
        refresh_page(page, text)
        assert page.read_text(encoding="utf-8") == f"# Title\n\n{BEGIN}\n\n{text}\n\n{END}\n\nText\n"


@pytest.mark.parametrize("content", [None, "# Title\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_page_without_its_place_is_refused_and_stays(tmp_path: Path, content: str | None) -> None:
    page = tmp_path / "page.md"
    if content is not None:
        page.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"page\.md is no page with one line"):
        refresh_page(page, "new")
    assert content is None or page.read_text(encoding="utf-8") == content

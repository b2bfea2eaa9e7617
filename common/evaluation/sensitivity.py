# SPDX-License-Identifier: Apache-2.0
"""What perturbed scans do to the Dice of methods: the table, what is lost most, and the page that shows both."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.files import write_bytes

Row = dict[str, Any]
"""Of one registration: "moving_id", "fixed_id", "perturbation", "method", "affine", "dice", "cpu_seconds"."""
BEGIN, END = (
    "<!-- begin of what scripts/sensitivity.py writes -->",
    "<!-- end of what scripts/sensitivity.py writes -->",
)


def sensitivity_table(rows: Sequence[Row], methods: Mapping[str, str]) -> str:
    """Mean Dice over pairs in Markdown: a line per perturbation without and with alignment, a column per method.

    Args:
        rows: of all pairs, lines and methods; the first line is that of the scans as they are.
        methods: what the columns are called, by method.

    Returns:
        The table with a last line of mean CPU seconds, then for each column the largest loss against the first line.
    """
    lines = list(dict.fromkeys((row["perturbation"], row["affine"]) for row in rows))
    titles = {line: f"{line[0]}, `--affine true`" if line[1] else line[0] for line in lines}
    text = [f"| moving scans | {' | '.join(methods.values())} |", "| --- |" + " --- |" * len(methods)]
    dice = {line: [_mean(rows, line, method, "dice") for method in methods] for line in lines}
    text += [f"| {titles[line]} | {' | '.join(f'{figure:.4f}' for figure in dice[line])} |" for line in lines]
    seconds = [statistics.fmean(row["cpu_seconds"] for row in rows if row["method"] == method) for method in methods]
    text += [f"| CPU s, mean | {' | '.join(f'{figure:.1f}' for figure in seconds)} |", ""]
    text += ["What is lost at most against the scans as they are:", ""]
    for column, name in enumerate(methods.values()):
        loss, worst = max((dice[lines[0]][column] - dice[line][column], titles[line]) for line in lines)
        text.append(f"- {name}: {loss:.4f} ({worst})" if loss > 0 else f"- {name}: nothing")
    return "\n".join(text)


def refresh_page(page: Path, text: str) -> None:
    """Replace what stands between the lines ``BEGIN`` and ``END`` of a page.

    Raises:
        InputError: as :func:`around_table`.
    """
    before, after = around_table(page)
    write_bytes(page, f"{before}{BEGIN}\n\n{text}\n\n{END}\n{after}".encode())


def around_table(page: Path) -> tuple[str, str]:
    """What stands before the line ``BEGIN`` of a page, and behind the line ``END``.

    Raises:
        InputError: when there is no such page or it lacks one of the lines.
    """
    try:
        before, rest = page.read_text(encoding="utf-8").split(f"{BEGIN}\n")
        _, after = rest.split(f"{END}\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{page} is no page with one line {BEGIN!r} and one line {END!r} behind it.") from error
    return before, after


def _mean(rows: Sequence[Row], line: tuple[str, bool], method: str, figure: str) -> float:
    return statistics.fmean(
        row[figure] for row in rows if (row["perturbation"], row["affine"], row["method"]) == (*line, method)
    )

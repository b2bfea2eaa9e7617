# SPDX-License-Identifier: Apache-2.0
"""Evaluations of several methods brought onto their common pairs, compared and ranked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import numpy as np

from common.checks import InputError
from common.evaluation.published import FIGURES as PUBLISHED_FIGURES
from common.evaluation.published import PublishedResult
from common.evaluation.runs import PairIds, Run, check_comparable
from common.metrics.ranking import (
    LUMIR_WEIGHTS,
    PairedTest,
    hard_entries,
    higher_is_better,
    l2r_scores,
    lumir_scores,
    paired_tests,
    ranges_of,
    replaced,
)

COSTS = ("seconds", "cpu_seconds", "peak_memory_gb", "parameters")
"""Figures that are no matter of chance, and are not tested."""
ORDER = (*"dice hd95 tre inverse_consistency ndv fold_fraction sdlogj sdlogj_l2r sdlogj_l2r_masked".split(), *COSTS)
"""Figures in the order of the columns; other columns of a run do not count."""
PUBLISHED = "†"
"""Mark of a published method, which may be called like a run."""
RANKED = ("dice", "hd95", "tre", "sdlogj_l2r")
"""Figures of Learn2Reg's ranking."""


@dataclass(frozen=True)
class Cell:
    """A figure of a method: mean and standard deviation, and as printed where it is from a publication."""

    mean: float
    std: float | None = None
    printed: str = ""


@dataclass(frozen=True)
class Entry:
    """A method in the table; ``kind`` is "run", "before" (no registration) or "published"."""

    name: str
    kind: str
    cells: dict[str, Cell]
    source: str = ""


@dataclass
class Leaderboard:
    """Methods side by side.

    Attributes:
        rows: best run first, then before registration, then published ones.
        figures: columns in their order.
        pairs: common to all runs.
        left_out: run to the pairs that only some of the others have.
        references: figure to the run that the others are tested against.
        tests: figure to run to its paired test against the reference.
        l2r: figure, and "score", to run to Learn2Reg's rank score.
        lumir: method to LUMIR's min-max score.
    """

    rows: list[Entry]
    figures: list[str]
    pairs: list[PairIds]
    left_out: dict[str, list[PairIds]]
    references: dict[str, str] = field(default_factory=dict)
    tests: dict[str, dict[str, PairedTest]] = field(default_factory=dict)
    l2r: dict[str, dict[str, float]] = field(default_factory=dict)
    lumir: dict[str, float] = field(default_factory=dict)

    def best(self, figure: str) -> set[str]:
        """Names of the methods with the best mean; none for figures without a direction."""
        means = {row.name: row.cells[figure].mean for row in self.rows if figure in row.cells and row.kind != "before"}
        if figure not in ORDER or not means:
            return set()
        target = max(means.values()) if higher_is_better(figure) else min(means.values())
        return {name for name, mean in means.items() if mean == target}


def compare(
    runs: Sequence[Run],
    published: Sequence[PublishedResult] = (),
    reference: str | None = None,
    published_ranges: bool = False,
    figures: Sequence[str] | None = None,
) -> Leaderboard:
    """Put runs beside each other on the pairs that all have, and beside a published table.

    Args:
        runs: at least one, with different names.
        published: rows of one table.
        reference: the run that others are tested against; default the best of each figure.
        published_ranges: take the ends of LUMIR's score from the published rows alone instead of from all rows.
        figures: names of the columns, in their order; default: all that there are. Scores count all in any case.

    Raises:
        InputError: when names repeat, no pair is common, the runs did not measure the same thing, or one of
            ``figures`` is unknown.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise InputError(f"Two runs are called alike ({', '.join(names)}): name them, NAME=DIR.")
    if reference is not None and reference not in names:
        raise InputError(f"There is no run {reference!r} to compare with; the runs are {', '.join(names)}.")
    pairs = [pair for pair in runs[0].cases if all(pair in run.cases for run in runs)]
    if not pairs:
        raise InputError(f"The runs {', '.join(names)} have no pair in common.")
    check_comparable(runs, pairs)
    every = dict.fromkeys(pair for run in runs for pair in run.cases)
    left_out = {run.name: [pair for pair in every if pair not in run.cases] for run in runs}
    rows = [Entry(run.name, "run", {**_costs(run), **_means(run, pairs)}) for run in runs]
    others = [*_before(runs, pairs), *_published(published)]
    board = Leaderboard(
        [*rows, *others],
        _columns([*rows, *others], figures),
        pairs,
        {name: missing for name, missing in left_out.items() if missing},
    )
    for figure in board.figures:
        _test(board, figure, runs, reference)
    if len(runs) > 1:
        board.l2r = _l2r(runs, pairs)
    board.lumir = _lumir([*rows, *others], published_ranges)
    board.rows = [*sorted(rows, key=lambda row: _place(board, row)), *others]
    return board


def _columns(rows: Sequence[Entry], asked: Sequence[str] | None) -> list[str]:
    """Names of the columns in their order."""
    present = dict.fromkeys(name for row in rows for name in row.cells)
    lacking = [name for name in asked or () if name not in present and name not in ORDER]
    if lacking:
        raise InputError(f"No run has the figure {lacking[0]!r}; there are {', '.join(present)}.")
    return list(asked or sorted(present, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)))


def _costs(run: Run) -> dict[str, Cell]:
    counted = {name: f"{value:,.0f}" if name == "parameters" else "" for name, value in run.costs.items()}
    return {name: Cell(run.costs[name], printed=text) for name, text in counted.items()}


def _column(run: Run, pairs: Sequence[PairIds], figure: str) -> list[float]:
    return [run.cases[pair].get(figure, math.nan) for pair in pairs]


def _summary(values: Sequence[float]) -> Cell | None:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return None
    spread = len(known) > 1 and all(map(math.isfinite, known))
    return Cell(statistics.fmean(known), statistics.pstdev(known) if spread else None)


def _means(run: Run, pairs: Sequence[PairIds], suffix: str = "") -> dict[str, Cell]:
    names = dict.fromkeys(name for pair in pairs for name in run.cases[pair])
    own = [n.removesuffix(suffix) for n in names if n.endswith("_before") == bool(suffix)]
    cells = {name: _summary(_column(run, pairs, name + suffix)) for name in own if name in ORDER}
    return {name: cell for name, cell in cells.items() if cell is not None}


def _before(runs: Sequence[Run], pairs: Sequence[PairIds]) -> list[Entry]:
    # Runs that measured it agree, see check_comparable.
    cells = {name: cell for run in runs for name, cell in _means(run, pairs, "_before").items()}
    return [Entry("before registration", "before", cells)] if cells else []


def _published(results: Sequence[PublishedResult]) -> list[Entry]:
    """One row per method; where sources repeat a figure, the first counts.

    A metric without counterpart of ours is kept if it compares methods.
    """
    rows: dict[str, Entry] = {}
    shared = {a.metric for a in results for b in results if a.metric == b.metric and a.method != b.method}
    for result in results:
        if result.metric not in PUBLISHED_FIGURES and result.metric not in shared:
            continue
        row = rows.setdefault(result.method, Entry(f"{result.method} {PUBLISHED}", "published", {}, result.source))
        name, factor = PUBLISHED_FIGURES.get(result.metric, (result.metric, 1.0))
        if name in row.cells:
            continue
        printed, std = (_scaled(text, factor) for text in (result.mean, result.std))
        spread = float(std) if std else None
        row.cells[name] = Cell(result.value * factor, spread, f"{printed} ± {std}" if std else printed)
    return sorted(rows.values(), key=lambda row: -row.cells["dice"].mean if "dice" in row.cells else 0)


def _scaled(text: str, factor: float) -> str:
    """A printed number times a power of ten, with all of its digits."""
    return text if factor == 1 or not text else str(Decimal(text) * Decimal(str(factor)))


def _test(board: Leaderboard, figure: str, runs: Sequence[Run], reference: str | None) -> None:
    """Add the paired tests of one figure, where two runs or more have it."""
    columns = {run.name: _column(run, board.pairs, figure) for run in runs}
    columns = {name: column for name, column in columns.items() if not np.isnan(column).all()}
    if len(columns) < 2 or figure in COSTS or figure not in ORDER or reference not in (None, *columns):
        return
    means = {row.name: row.cells[figure].mean for row in board.rows if row.name in columns}
    best = (max if higher_is_better(figure) else min)(means, key=lambda name: means[name])
    board.references[figure] = reference or best
    board.tests[figure] = paired_tests(columns, reference or best)


def _l2r(runs: Sequence[Run], pairs: Sequence[PairIds]) -> dict[str, dict[str, float]]:
    """Rank scores over pairs and labels; empty where a run has no table of labels."""
    if any(pair not in run.labels for run in runs for pair in pairs):
        return {}
    keys = [(pair, label) for pair in pairs for label in runs[0].labels[pair]]
    tables: dict[str, Any] = {}
    for name in RANKED:
        per_label = [[run.labels[pair][label].get(name, math.nan) for pair, label in keys] for run in runs]
        per_case = [_column(run, pairs, name) for run in runs]
        table = per_label if not np.isnan(per_label).all() else per_case
        if np.isfinite(table).all() or (name in ("dice", "hd95") and not np.isnan(table).all(axis=1).any()):
            tables[name] = table
    if "dice" not in tables:
        return {}
    initial = [runs[0].labels[pair][label].get("dice_before", math.nan) for pair, label in keys]
    hardest = tables["dice"][0] if np.isnan(initial).all() else initial
    scores = l2r_scores(tables, hard_entries(replaced(hardest, "dice")))
    return {name: {run.name: float(v) for run, v in zip(runs, values, strict=True)} for name, values in scores.items()}


def _lumir(rows: Sequence[Entry], published_ranges: bool) -> dict[str, float]:
    """Min-max scores of the rows that have all four figures."""
    means = {row.name: {name: row.cells[name].mean for name in LUMIR_WEIGHTS if name in row.cells} for row in rows}
    table = {
        name: row
        for name, row in means.items()
        if len(row) == len(LUMIR_WEIGHTS) and all(map(math.isfinite, row.values()))
    }
    limits = {row.name: table[row.name] for row in rows if row.kind == "published" and row.name in table}
    chosen = limits if published_ranges else table
    return lumir_scores(table, ranges_of(chosen)) if len(chosen) > 1 else {}


def _place(board: Leaderboard, row: Entry) -> tuple[float, float]:
    """Sorting key of a run: rank score, then Dice, best first."""
    dice = row.cells["dice"].mean if "dice" in row.cells else 0.0
    score = board.l2r.get("score", board.lumir).get(row.name, 0.0)
    return -score, -dice

# SPDX-License-Identifier: Apache-2.0
"""Comparing methods by what they reached on the same pairs: significance tests and the challenges' rankings.

Everything here takes and returns plain numbers; higher is better for Dice, lower for every other figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from common.checks import InputError

LUMIR_WEIGHTS = {"dice": 1 / 6, "hd95": 1 / 6, "tre": 1 / 3, "ndv": 1 / 3}
"""Share of each figure in the score of LUMIR's validation leaderboard."""
L2R_REPLACEMENTS = {"dice": 0.0, "hd95": 10.0}
"""What Learn2Reg's ranking takes for a value that is missing (NaN) or infinite."""

Array = NDArray[np.float64]


class PairedTest(NamedTuple):
    """Two-sided Wilcoxon signed-rank test of one method against the reference.

    Attributes:
        pairs: on which both have a value.
        difference: median over those pairs of (method - reference).
        p: of the test alone; 1 when all differences are 0, NaN without pairs.
        p_holm: corrected for the number of methods compared with the reference.
    """

    pairs: int
    difference: float
    p: float
    p_holm: float


def higher_is_better(figure: str) -> bool:
    """Whether a larger value of ``figure`` (a name as in ``cases.csv``) is the better one."""
    return figure.lower().startswith("dice")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 1979).

    Args:
        p_values: of the tests of one family; NaN entries are no tests and stay NaN.

    Returns:
        Corrected values in the same order, at most 1: reject where they are below the level of the family.
    """
    p = np.asarray(p_values, np.float64)
    corrected = np.full(len(p), np.nan)
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, float(p[index]) * (len(order) - rank)))
        corrected[index] = largest
    return [float(value) for value in corrected]


def paired_tests(values: Mapping[str, ArrayLike], reference: str) -> dict[str, PairedTest]:
    """Compare every method with ``reference`` on the pairs that both have, Wilcoxon signed-rank with Holm correction.

    Args:
        values: method to one value per pair, the same pairs in the same order; NaN where there is none.
        reference: one of the methods.

    Returns:
        One entry for each of the other methods.

    Raises:
        InputError: when the reference is no method or the numbers of pairs differ.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in values.items()}
    if reference not in columns:
        raise InputError(f"There is no method {reference!r} to compare with; the methods are {', '.join(columns)}.")
    if len({column.shape for column in columns.values()}) > 1 or columns[reference].ndim != 1:
        raise InputError("A paired test needs one value per pair and the same pairs for every method.")
    others = [name for name in columns if name != reference]
    tests = [_signed_rank(columns[name], columns[reference]) for name in others]
    corrected = holm([p for _, _, p in tests])
    return {name: PairedTest(*test, p) for name, test, p in zip(others, tests, corrected, strict=True)}


def _signed_rank(first: Array, second: Array) -> tuple[int, float, float]:
    from scipy.stats import wilcoxon

    both = ~(np.isnan(first) | np.isnan(second))
    first, second = first[both], second[both]
    if not len(first):
        return 0, float("nan"), float("nan")
    # Two infinite distances are equal, though their difference is no number.
    with np.errstate(invalid="ignore"):
        difference = np.where(first == second, 0.0, first - second)
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return len(first), float(np.median(difference)), p


def worse_counts(values: ArrayLike, higher_better: bool, level: float = 0.05) -> Array:
    """How many other methods are significantly better than each method, by Learn2Reg's rule.

    The rule is an *unpaired* Wilcoxon rank-sum test over all cases and labels, whatever the challenge's text says.

    Args:
        values: (methods, cases) or (methods, cases, labels), without NaN or infinity.
        higher_better: False turns the signs.
        level: of significance, without correction for the number of tests.

    Returns:
        (methods,), whole numbers as float64.
    """
    from scipy.stats import ranksums

    table = np.asarray(values, np.float64)
    flat = (1 if higher_better else -1) * table.reshape(len(table), -1)
    counts = np.zeros(len(flat))
    for i, j in ((i, j) for i in range(len(flat)) for j in range(len(flat)) if i != j):
        statistic, p = ranksums(flat[i], flat[j])
        counts[j] += statistic > 0 and p < level
    return counts


def rank_scores(counts: ArrayLike) -> Array:
    """Scores from 1 (fewest better methods) down to 0.1 in equal steps; methods with one count share their mean.

    Args:
        counts: (methods,), see :func:`worse_counts`.
    """
    numbers = np.asarray(counts)
    scores = np.empty(len(numbers))
    scores[np.argsort(numbers, kind="stable")] = np.linspace(0.1, 1, len(numbers))[::-1]
    for count in np.unique(numbers):
        scores[numbers == count] = scores[numbers == count].mean()
    return scores


def hard_entries(dice: ArrayLike, fraction: float = 0.3) -> NDArray[np.int64]:
    """Indices of the hardest cases and labels, those of lowest Dice of a reference method (or before registration).

    Args:
        dice: (cases, labels), without NaN.
        fraction: share of the entries.

    Returns:
        (round(fraction * cases * labels),), into the flattened table, hardest first.
    """
    flat = np.asarray(dice, np.float64).ravel()
    return np.argsort(flat, kind="stable")[: round(fraction * len(flat))]


def l2r_scores(tables: Mapping[str, ArrayLike], hard: ArrayLike | None = None) -> dict[str, Array]:
    """Learn2Reg's significance ranking: rank scores per figure and their geometric mean.

    Args:
        tables: figure ("dice", "hd95", "tre", "sdlogj_l2r", ...) to values (methods, cases, labels) or (methods,
            cases), the methods in one order. Missing and infinite values are replaced, see ``L2R_REPLACEMENTS``.
        hard: indices into the flattened (cases, labels) of ``tables["dice"]``, see :func:`hard_entries`; adds the
            figure "dice30". Default none.

    Returns:
        Figure to scores (methods,) in [0.1, 1], and their geometric mean over the figures as "score".

    Raises:
        InputError: when a figure without a replacement holds NaN or infinity.
    """
    complete = {name: replaced(values, name) for name, values in tables.items()}
    if hard is not None:
        flat = complete["dice"].reshape(len(complete["dice"]), -1)
        complete["dice30"] = flat[:, np.asarray(hard)]
    scores = {name: rank_scores(worse_counts(values, higher_is_better(name))) for name, values in complete.items()}
    return {**scores, "score": np.exp(np.mean([np.log(value) for value in scores.values()], axis=0))}


def replaced(values: ArrayLike, figure: str) -> Array:
    """A copy with missing and infinite entries replaced as Learn2Reg's ranking does."""
    table: Array = np.array(values, np.float64)
    wrong = ~np.isfinite(table)
    if wrong.any():
        if figure not in L2R_REPLACEMENTS:
            raise InputError(f"{int(wrong.sum())} values of {figure} are missing or infinite: they cannot be ranked.")
        table[wrong] = L2R_REPLACEMENTS[figure]
    return table


def ranges_of(rows: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """(smallest, largest) value of each of LUMIR's figures over the rows of a table."""
    return {
        figure: (min(row[figure] for row in rows.values()), max(row[figure] for row in rows.values()))
        for figure in LUMIR_WEIGHTS
    }


def lumir_scores(
    rows: Mapping[str, Mapping[str, float]], ranges: Mapping[str, tuple[float, float]] | None = None
) -> dict[str, float]:
    """Score of LUMIR's validation leaderboard: Dice/6 + HD95/6 + TRE/3 + NDV/3, each min-max normalised, 1 = best.

    Args:
        rows: method to its mean "dice", "hd95", "tre" and "ndv".
        ranges: figure to (smallest, largest) value that count as its ends; default those of ``rows``, which is the
            challenge's rule. A score then depends on which methods stand in the table.

    Returns:
        Method to score; in [0, 1] for methods within the ranges. A figure in which all are equal counts as 1.
    """
    limits = ranges_of(rows) if ranges is None else ranges
    return {
        name: sum(weight * _normalised(row[figure], figure, limits) for figure, weight in LUMIR_WEIGHTS.items())
        for name, row in rows.items()
    }


def _normalised(value: float, figure: str, ranges: Mapping[str, tuple[float, float]]) -> float:
    low, high = ranges[figure]
    if high == low:
        return 1.0
    return (value - low) / (high - low) if higher_is_better(figure) else (high - value) / (high - low)

# SPDX-License-Identifier: Apache-2.0
"""Published result tables as data, each figure with its source: ``published.csv`` beside this module.

Methods and figures are named as in their source; submissions that a leaderboard knows by a person's account are named
by their rank. What the same word means differs between sources, see ``FIGURES``.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from common.checks import InputError

FIGURES = {
    "Dice": ("dice", 1.0),
    "Dice_percent": ("dice", 0.01),
    "HD95": ("hd95", 1.0),
    "HD95_mm": ("hd95", 1.0),
    "TRE_mm": ("tre", 1.0),
    "NDV_percent": ("ndv", 1.0),
    # Learn2Reg's figure is that of the whole volume; the OASIS table agrees with the one inside the brain.
    "SDlogJ": ("sdlogj_l2r", 1.0),
    "SDlogJ_x100": ("sdlogj_l2r_masked", 0.01),
    "percent_det_le_0": ("fold_fraction", 1.0),
}
"""Published metric to our figure and what to multiply by; other metrics have no counterpart."""


class PublishedResult(NamedTuple):
    """One figure of one method in a published table.

    Attributes:
        dataset: for instance "LUMIR2024".
        split: which pairs.
        method: as the source calls it.
        metric: as the source calls it, with its unit.
        mean: as printed; "<0.0001" is an upper bound.
        std: as printed, empty where the source has none.
        source: repository with commit, and table.
    """

    dataset: str
    split: str
    method: str
    metric: str
    mean: str
    std: str
    source: str

    @property
    def value(self) -> float:
        """The mean as a number; of "<x" the bound x."""
        return float(self.mean.lstrip("<"))


@lru_cache(maxsize=1)
def _all_results() -> tuple[PublishedResult, ...]:
    with open(Path(__file__).with_name("published.csv"), newline="", encoding="utf-8") as file:
        return tuple(PublishedResult(**row) for row in csv.DictReader(file))


def published_results(
    dataset: str | None = None, split: str | None = None, method: str | None = None, metric: str | None = None
) -> list[PublishedResult]:
    """Rows of the published tables in their order, those that equal every argument given, upper and lower case alike.

    Args:
        dataset: see :class:`PublishedResult`.
        split: likewise.
        method: likewise.
        metric: likewise.
    """
    wanted = {"dataset": dataset, "split": split, "method": method, "metric": metric}
    asked = {name: value.lower() for name, value in wanted.items() if value is not None}
    return [row for row in _all_results() if all(getattr(row, name).lower() == value for name, value in asked.items())]


def published_table(name: str) -> list[PublishedResult]:
    """Rows of the one table that ``DATASET`` or ``DATASET:SPLIT`` names; a split may be shortened to its beginning.

    Raises:
        InputError: when there is no such table or several, with those that exist.
    """
    dataset, _, split = name.partition(":")
    tables = dict.fromkeys((row.dataset, row.split) for row in published_results(dataset))
    exact = [table for table in tables if table[1].lower() == split.lower()]
    found = exact or [table for table in tables if table[1].lower().startswith(split.lower())]
    if len(found) != 1:
        every = tables or dict.fromkeys((row.dataset, row.split) for row in _all_results())
        problem = "is not unique" if len(found) > 1 else "does not exist"
        raise InputError(f"The published table {name!r} {problem}; choose one of: {_listed(list(every))}.")
    return published_results(*found[0])


def _listed(tables: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f'"{dataset}:{split}"' for dataset, split in tables)

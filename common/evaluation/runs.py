# SPDX-License-Identifier: Apache-2.0
"""Finished evaluations read back: what each method reached on each pair, and whether two of them are comparable.

A run is the folder of an evaluation: ``cases.csv`` with one row per pair, ``labels.csv`` with one per pair and label
where there are labels, ``summary.json`` with the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.tables import read_csv

PairIds = tuple[str, str]
"""(moving, fixed)."""
IDS = ("moving_id", "fixed_id")
SETTINGS = ("hd95", "ndv_mask")
"""Settings of an evaluation that change what its figures mean; labels and grids show in the tables themselves."""
_DIGITS = 1e-5
"""Relative rounding of a figure in ``cases.csv``."""


@dataclass(frozen=True)
class Run:
    """One method's evaluation.

    Attributes:
        name: of the method.
        folder: where it was read.
        cases: pair (moving, fixed) to its figures.
        labels: pair to label to figures; empty without ``labels.csv``.
        settings: of the evaluation.
        costs: of all pairs together, as the summary has them: ``peak_memory_gb``, ``parameters`` of a network.
    """

    name: str
    folder: Path
    cases: dict[PairIds, dict[str, float]]
    labels: dict[PairIds, dict[str, dict[str, float]]]
    settings: Mapping[str, Any]
    costs: Mapping[str, float]


def read_run(text: str) -> Run:
    """Read the evaluation that ``DIR`` or ``NAME=DIR`` names; without a name the folder's counts.

    Raises:
        InputError: when the folder has no usable ``cases.csv``, or a damaged table beside it.
    """
    name, found, path = text.partition("=")
    # A folder's own name may hold the sign.
    is_named = bool(found) and not Path(text).is_dir()
    folder = Path(path if is_named else text)
    cases = _rows(folder / "cases.csv", IDS)
    if not cases:
        raise InputError(
            f"{folder / 'cases.csv'} is missing or empty: give the folder of an evaluation, as scripts/evaluate.py "
            "writes it."
        )
    table: dict[PairIds, dict[str, float]] = {}
    for case in cases:
        if _pair(case) in table:
            raise InputError(f"{folder / 'cases.csv'} holds the pair {' to '.join(_pair(case))} twice.")
        table[_pair(case)] = _figures(case)
    labels: dict[PairIds, dict[str, dict[str, float]]] = {}
    for row in _rows(folder / "labels.csv", (*IDS, "label")):
        labels.setdefault(_pair(row), {})[row["label"]] = _figures(row)
    summary = _summary(folder / "summary.json")
    settings = summary.get("settings")
    called = name if is_named else folder.resolve().name
    return Run(called, folder, table, labels, settings if isinstance(settings, Mapping) else {}, _costs(summary))


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    rows = read_csv(path)
    if rows and any(column not in rows[0] for column in columns):
        wanted = f"{', '.join(columns[:-1])} or {columns[-1]}"
        raise InputError(f"{path} lacks {wanted}: it is no table of an evaluation.")
    return rows


def _pair(row: Mapping[str, str]) -> PairIds:
    return row["moving_id"], row["fixed_id"]


def _figures(row: Mapping[str, str]) -> dict[str, float]:
    """The numbers of a row; empty cells are left out."""
    figures = {}
    for name, text in row.items():
        if name not in (*IDS, "label") and text:
            try:
                figures[name] = float(text)
            except ValueError:
                continue
    return figures


def _summary(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: evaluate again.") from error
    return content if isinstance(content, Mapping) else {}


def _costs(summary: Mapping[str, Any]) -> dict[str, float]:
    memory = summary.get("metrics", {}).get("peak_memory_gb", {}).get("mean")
    # A field that is optimised from nothing has a network without any.
    found = {"peak_memory_gb": memory, "parameters": summary.get("parameters") or None}
    return {name: float(value) for name, value in found.items() if value is not None}


def check_comparable(runs: Sequence[Run], pairs: Sequence[PairIds]) -> None:
    """Refuse runs that were measured on different labels or by different rules.

    Settings that both name must agree, and so must what was measured before registration: it does not depend on the
    method.

    Raises:
        InputError: naming two runs and what differs.
    """
    for first, other in combinations(runs, 2):
        _check_settings(first, other)
        for pair in pairs:
            _check_pair(first, other, pair)


def _check_settings(first: Run, other: Run) -> None:
    for name in SETTINGS:
        if name in first.settings and name in other.settings and first.settings[name] != other.settings[name]:
            raise InputError(
                f"{first.name} and {other.name} were evaluated with different settings: {name} is "
                f"{_short(first.settings[name])} and {_short(other.settings[name])}. Evaluate them alike."
            )


def _check_pair(first: Run, other: Run, pair: PairIds) -> None:
    labels = [set(run.labels[pair]) for run in (first, other) if pair in run.labels]
    if len(labels) == 2 and labels[0] != labels[1]:
        differing = sorted(labels[0] ^ labels[1], key=lambda label: (len(label), label))
        raise InputError(
            f"{first.name} and {other.name} were evaluated on different labels of {' to '.join(pair)}: only one has "
            f"{', '.join(differing[:8])}. Evaluate them alike."
        )
    for name, value in first.cases[pair].items():
        if name.endswith("_before") and not _alike(value, other.cases[pair].get(name, value)):
            raise InputError(
                f"{first.name} and {other.name} differ before registration ({name} of {' to '.join(pair)} is {value:g} "
                f"and {other.cases[pair][name]:g}): they were measured on different labels, grids or units. Evaluate "
                "them alike."
            )


def _alike(one: float, other: float) -> bool:
    return one == other or math.isclose(one, other, rel_tol=_DIGITS) or (math.isnan(one) and math.isnan(other))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

# SPDX-License-Identifier: Apache-2.0
"""``metrics.json`` in the form of the Learn2Reg and LUMIR evaluations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.data.readers.listing import file_stem
from common.evaluation.pair_files import PairFiles
from common.evaluation.pair_lists import Challenge, ChallengeMetric
from common.io.files import write_bytes

FILE = "metrics.json"
_LARGE_IS_BAD = ("sdlogj", "tre")
"""Figures whose hard tail Learn2Reg takes at the upper end. HD95 is not among them: there it is the good tail."""


def write_challenge_results(
    path: Path, challenge: Challenge, files: Sequence[PairFiles], measured: Sequence[Mapping[str, Any]]
) -> None:
    """Write the figures that a challenge's configuration asks for; NaN and Infinity stand in it literally.

    Args:
        path: of the file.
        challenge: the configuration.
        files: the pairs.
        measured: per pair what :func:`common.evaluation.pair_measure.measure_pair` returned.

    Raises:
        InputError: when the file cannot be written.
    """
    cases: dict[str, dict[str, Any]] = {}
    for pair, case in zip(files, measured, strict=True):
        name = f"{_code(pair.fixed, pair.fixed_id)}<--{_code(pair.moving, pair.moving_id)}"
        figures = ((metric.name, _figure(metric, challenge, case)) for metric in challenge.metrics)
        cases[name] = {title: figure for title, figure in figures if figure is not None}
    aggregates = {}
    for metric in challenge.metrics:
        values = np.array([case[metric.name]["mean"] for case in cases.values() if metric.name in case])
        if len(values):
            hard = 0.7 if metric.metric in _LARGE_IS_BAD and not challenge.lumir else 0.3
            figures30 = float(np.quantile(values, hard)) if np.isfinite(values).all() else float("nan")
            with np.errstate(invalid="ignore"):
                aggregates[metric.name] = {"mean": float(values.mean()), "std": float(values.std()), "30": figures30}
    content = {"name": challenge.name, "aggregates": aggregates, "cases": cases, "eval_version": "2.0"}
    write_bytes(path, (json.dumps(content, indent=4) + "\n").encode())


def _figure(metric: ChallengeMetric, challenge: Challenge, case: Mapping[str, Any]) -> dict[str, Any] | None:
    column = metric.metric
    if column == "sdlogj":
        column = "sdlogj_l2r_masked" if challenge.masked else "sdlogj_l2r"
    elif column == "tre":
        column = f"tre_{metric.dest or 'landmarks'}"
    if column not in case:
        return None
    table = case.get(f"{column}_per_label")
    return {"mean": case[column], "detailed": case[column] if table is None else list(table.values())}


def _code(path: str | None, identity: str) -> str:
    """``0395_0000`` of ``OASIS_0395_0000.nii.gz``."""
    stem = identity if path is None else file_stem(path)
    found = re.search(r"(\d+_\d{4})$", stem)
    return found[1] if found else stem

# SPDX-License-Identifier: Apache-2.0
"""Displacement fields of several methods for the same pairs, evaluated alike and put on one page."""

from __future__ import annotations

import json
import logging
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.label_groups import read_group_names
from common.evaluation.field_evaluation import EvaluationRequest
from common.evaluation.pair_files import PairFiles
from common.evaluation.pair_lists import read_pair_list
from common.evaluation.pair_measure import LoadedPair, Measures, load_pair
from common.evaluation.runs import PairIds
from common.io.formats.conventions import CONVENTIONS
from common.io.provenance import provenance
from common.io.tables import read_csv
from common.report.comparison_page import Evaluation, write_comparison
from common.report.evaluation import worst_median_best
from common.report.field_evaluation import report_fields, viewed_scans
from common.report.viewer import ViewedPair

logger = logging.getLogger(__name__)
PAGE = "compare.html"
_NAME = re.compile(r"[\w.+ -]+")


def compare_fields(
    requests: Mapping[str, EvaluationRequest],
    output_dir: Path,
    *,
    title: str = "Comparison of registrations",
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Evaluate every method into a folder of its name and write ``compare.html`` beside these folders.

    The same call goes on after an interruption: methods that are finished are not measured again.

    Args:
        requests: method to what is scored, in the order of the page, alike but for fields and convention; names become
            folders. Without images there is no viewer.
        output_dir: folder of the results.
        title: of the page.
        workers: processes; default: one per processor.
        overwrite: whether to replace what is there.

    Returns:
        The page.

    Raises:
        InputError: when a name cannot be a folder, a comparison is there already, or an evaluation fails.
    """
    page = output_dir / PAGE
    _check(requests, page, overwrite)
    contents = {}
    for name, request in requests.items():
        print(f"{name}: {request.fields}", flush=True)
        finished = None if overwrite else _finished(output_dir / name, request)
        contents[name] = finished or report_fields(
            request, output_dir / name, workers=workers, overwrite=overwrite, title=name
        )
    methods = {name: _evaluation(output_dir / name, content) for name, content in contents.items()}
    first = next(iter(requests.values()))
    is_challenge = read_pair_list(first.pairs, first.section).challenge is not None
    measures = Measures(
        label_groups=None if first.label_groups is None else str(first.label_groups),
        label_numbering=first.label_numbering,
        headers=(first.grids or ("array" if is_challenge else "header")) == "header",
    )
    viewer = [] if first.images is None else _viewed(contents, methods, measures)
    write_comparison(page, title, methods, viewer, provenance(), read_group_names(first.label_groups))
    print(f"Comparison of {len(methods)} methods: {page}")
    return page


def _check(requests: Mapping[str, EvaluationRequest], page: Path, overwrite: bool) -> None:
    for name in requests:
        if not _NAME.fullmatch(name) or not name.strip(" ."):
            raise InputError(f"The method name {name!r} cannot be a folder: use letters, digits, . + - _ and spaces.")
    if page.exists() and not overwrite:
        raise InputError(f"{page} exists: choose another --output, or replace it with --overwrite true.")


def _finished(folder: Path, request: EvaluationRequest) -> dict[str, Any] | None:
    """What an interrupted comparison measured already, if with these settings and on the fields that are there."""
    path = folder / "summary.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        written = path.stat().st_mtime
        is_current = all(Path(pair["field"]).stat().st_mtime <= written for pair in content["pair_files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    settings = content.get("settings", {})
    same = settings == json.loads(json.dumps(request.settings()))
    if not (same and is_current and (folder / "report.html").is_file()):
        return None
    logger.info("%s is finished already.", folder)
    return content


def _evaluation(folder: Path, content: Mapping[str, Any]) -> Evaluation:
    return Evaluation(content["metrics"], read_csv(folder / "cases.csv"), read_csv(folder / "labels.csv"))


def _viewed(
    contents: Mapping[str, Mapping[str, Any]], methods: Mapping[str, Evaluation], measures: Measures
) -> list[ViewedPair]:
    """The worst, the median and the best pair by Dice, mean over methods, as every method warped it."""
    scores: dict[PairIds, list[float]] = {}
    for evaluation in methods.values():
        for index, case in enumerate(evaluation.cases):
            key = (case["moving_id"], case["fixed_id"])
            scores.setdefault(key, []).append(float(case["dice"]) if case.get("dice") else float(index))
    has_dice = any("dice" in evaluation.metrics for evaluation in methods.values())
    means = {key: statistics.fmean(values) for key, values in scores.items()}
    viewed = []
    for name, key in worst_median_best(list(means), key=means.__getitem__).items():
        text = f", mean Dice {means[key]:.3f}" if has_dice else ""
        loaded = {
            method: load_pair(*_files(content, key, measures), judge=False) for method, content in contents.items()
        }
        viewed.append(_pair(f"{name}: {key[0]} to {key[1]}{text}", loaded))
    return viewed


def _files(content: Mapping[str, Any], key: PairIds, measures: Measures) -> tuple[PairFiles, Measures]:
    """Files of one pair and how to read them, from what an evaluation left behind."""
    (entry,) = (pair for pair in content["pair_files"] if (pair["moving_id"], pair["fixed_id"]) == key)
    named = {name: value for name, value in entry.items() if name in PairFiles.__dataclass_fields__}
    named.pop("landmarks", None)
    return PairFiles(**named), Measures(
        # Some files say alone what they are, for instance a grid of splines.
        convention=entry["convention"] if entry["convention"] in CONVENTIONS else "auto",
        label_groups=measures.label_groups,
        label_numbering=measures.label_numbering,
        headers=measures.headers,
    )


def _pair(caption: str, loaded: Mapping[str, LoadedPair]) -> ViewedPair:
    scans = {method: viewed_scans(pair) for method, pair in loaded.items()}
    fixed, before, _ = next(iter(scans.values()))
    affine = next(iter(loaded.values())).fixed_grid.affine
    return ViewedPair(
        caption, moving=before, fixed=fixed, warped={method: found[2] for method, found in scans.items()}, affine=affine
    )

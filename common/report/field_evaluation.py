# SPDX-License-Identifier: Apache-2.0
"""Displacement fields of any tool scored, with tables and a page to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.data.label_groups import read_group_names
from common.evaluation.challenge_results import FILE as CHALLENGE_FILE
from common.evaluation.challenge_results import write_challenge_results
from common.evaluation.field_evaluation import EvaluationRequest, FieldEvaluation, evaluate_fields
from common.evaluation.finished_pairs import is_unfinished
from common.evaluation.pair_files import PairFiles
from common.evaluation.pair_measure import LoadedPair, Measures, load_pair
from common.report.evaluation import picture, refuse_existing, worst_median_best, write_evaluation
from common.report.viewer import ViewedPair, ViewedScan
from common.spatial.plane import laid, laid_field


def report_fields(
    request: EvaluationRequest,
    output_dir: str | Path,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    title: str | None = None,
) -> dict[str, Any]:
    """Score every pair and write ``cases.csv``, ``labels.csv``, ``summary.json`` and ``report.html``.

    For an evaluation configuration of Learn2Reg or LUMIR also ``metrics.json`` in their form.

    Args:
        request: what is scored, and how.
        output_dir: folder of the results.
        workers: processes; default: one per processor.
        overwrite: whether to replace an evaluation that is there.
        title: of the page.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: when anything given cannot be used; nothing but finished pairs is left behind.
    """
    output = Path(output_dir)
    if not is_unfinished(output):
        refuse_existing(output, overwrite)
    found = evaluate_fields(request, output, workers, overwrite)
    details = {
        "settings": request.settings(),
        "missing": found.missing,
        "pair_files": [
            {**{k: v for k, v in asdict(f).items() if v not in (None, ())}, "convention": case["convention"]}
            for f, case in zip(found.files, found.cases, strict=True)
        ],
    }
    panels, viewer = _pictures(found.files, found.cases, found.measures)
    if found.challenge is not None:
        write_challenge_results(output / CHALLENGE_FILE, found.challenge, found.files, found.cases)
    challenge = None if found.challenge is None else found.challenge.name
    name = title or challenge or f"Evaluation of {Path(request.fields).resolve().name}"
    names = read_group_names(request.label_groups)
    content = write_evaluation(output, name, found.cases, panels, details=details, viewer=viewer, label_names=names)
    found.finished.remove()
    _mention(found)
    return content


def _pictures(
    files: Sequence[PairFiles], measured: Sequence[Mapping[str, Any]], measures: Measures
) -> tuple[list[tuple[str, bytes]], list[ViewedPair]]:
    """Panels and slices of the worst, the median and the best pair."""
    if files[0].fixed is None:
        return [], []
    panels, viewer = [], []
    indices = range(len(files))
    score = [float(case.get("dice", index)) for index, case in enumerate(measured)]
    for name, index in worst_median_best(indices, key=score.__getitem__).items():
        pair = load_pair(files[index], measures, judge=False)
        fixed, before, warped = viewed_scans(pair)
        text = f", Dice {score[index]:.3f}" if "dice" in measured[index] else ""
        caption = f"{name}: {pair.files.moving_id} to {pair.files.fixed_id}{text}"
        sides = {"moving": before.image, "fixed": fixed.image, "warped": warped.image}
        affine = pair.fixed_grid.affine
        panels.append((caption, picture(**sides, ddf=laid_field(pair.ddf[0], pair.fixed_grid.dims), affine=affine)))
        viewer.append(ViewedPair(caption, moving=before, fixed=fixed, warped={"Warped": warped}, affine=affine))
    return panels, viewer


def viewed_scans(pair: LoadedPair) -> tuple[ViewedScan, ViewedScan, ViewedScan]:
    """The fixed scan, and the moving one brought to its grid by its header and by the field, in their dimensions."""
    sides = (
        (pair.images["fixed"], pair.images.get("fixed_label")),
        *(pair.moving_on_fixed(place) for place in (pair.to_moving_before, pair.to_moving)),
    )
    dims = pair.fixed_grid.dims
    fixed, before, warped = (
        ViewedScan(laid(image, dims), None if label is None else laid(label, dims)) for image, label in sides
    )
    return fixed, before, warped


def _mention(found: FieldEvaluation) -> None:
    skipped = sum(int(case.get("labels_skipped", 0)) for case in found.cases)
    total = sum(len(case.get("dice_per_label", ())) for case in found.cases)
    if skipped:
        print(f"{skipped} of {total} labels were skipped because the fixed or the moving image lacks them.")
    if found.missing:
        print(f"{len(found.missing)} pairs are missing and not in the figures; summary.json lists them.")

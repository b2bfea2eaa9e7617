# SPDX-License-Identifier: Apache-2.0
"""The four files of an evaluation: tables per pair and per label, a summary, a page to read."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from common.checks import InputError
from common.io.provenance import provenance
from common.io.tables import write_csv, write_json
from common.report.pages import write_report
from common.report.panels import as_png, panel
from common.report.viewer import ViewedPair
from common.spatial.plane import downwards

EVALUATION_FILES = ("cases.csv", "labels.csv", "summary.json", "report.html")
Item = TypeVar("Item")


def write_evaluation(
    output_dir: Path,
    title: str,
    measured: Sequence[Mapping[str, Any]],
    panels: Sequence[tuple[str, bytes]],
    *,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    details: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    viewer: Sequence[ViewedPair] = (),
    label_names: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Write the four files of an evaluation and print its table.

    Args:
        output_dir: folder of the files.
        title: of the page.
        measured: per pair what :class:`common.metrics.handlers.RegistrationMetrics` keeps as ``cases``, and further
            columns.
        panels: (caption, PNG) for the page.
        figures: further figures for the summary.
        details: further entries of ``summary.json``.
        history: rows of the training's ``history.csv``, shown as curves.
        viewer: pairs whose slices can be looked at on the page.
        label_names: names of structures, shown behind the numbers.

    Returns:
        The content of ``summary.json``.

    Raises:
        InputError: when a file cannot be written.
    """
    cases = [{k: v for k, v in case.items() if not isinstance(v, Mapping)} for case in measured]
    labels = _rows_per_label(measured)
    summary = {**_summary(cases), **(figures or {})}
    notes = _notes(measured)
    content: dict[str, Any] = {
        "title": title,
        "pairs": len(cases),
        "metrics": summary,
        **({"undefined": notes} if notes else {}),
        **(details or {}),
        "provenance": provenance(),
    }
    cells = [
        {name: None if name in case.get("undefined", ()) else value for name, value in row.items()}
        for case, row in zip(measured, cases, strict=True)
    ]
    write_csv(output_dir / "cases.csv", cells)
    write_csv(output_dir / "labels.csv", labels)
    write_json(output_dir / "summary.json", content)
    write_report(
        output_dir / "report.html",
        title=title,
        summary=summary,
        cases=cases,
        labels=labels,
        history=history,
        panels=panels,
        provenance=content["provenance"],
        viewer=viewer,
        label_names=label_names,
    )
    print(summary_table(summary, len(cases)))
    for note in notes:
        print(note)
    print(f"Tables and report: {output_dir / 'report.html'}")
    return content


def refuse_existing(output_dir: Path, overwrite: bool) -> None:
    """Refuse a folder with an evaluation in it.

    Raises:
        InputError: naming its files, unless ``overwrite``.
    """
    existing = [name for name in EVALUATION_FILES if (output_dir / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{output_dir} holds an evaluation already ({', '.join(existing)}): choose another folder, or "
            "replace it with --overwrite true."
        )


def worst_median_best(items: Sequence[Item], key: Callable[[Item], float]) -> dict[str, Item]:
    """Which pairs a page shows; the only one, or the worst of two, where there are no three."""
    ranked = sorted(items, key=key)
    if len(ranked) < 3:
        return {"pair": ranked[0]}
    return {"worst pair": ranked[0], "median pair": ranked[len(ranked) // 2], "best pair": ranked[-1]}


def picture(*, moving: Tensor, fixed: Tensor, warped: Tensor, ddf: Tensor, affine: Tensor) -> bytes:
    """The panel of a pair as PNG.

    Args:
        moving: as in :func:`common.report.panels.panel`.
        fixed: as there.
        warped: as there.
        ddf: as there.
        affine: (4, 4), fixed voxels to millimetres, for the proportions of voxels and the direction of rows.
    """
    dims = len(ddf)
    spacing = affine[:3, :dims].norm(dim=0).tolist()
    turned = dims == 2 and downwards(affine)
    return as_png(panel(moving=moving, fixed=fixed, warped=warped, ddf=ddf, spacing=spacing, downwards=turned))


def summary_table(summary: Mapping[str, Mapping[str, float]], pairs: int) -> str:
    """Text for a terminal: each figure before and after."""
    lines = [f"{pairs} pairs" + " " * 12 + "before      after"]
    for name, entry in summary.items():
        before = f"{entry['before']:10.4f}" if "before" in entry else " " * 10
        spread = f" ± {entry['std']:.4f}" if "std" in entry else ""
        lines.append(f"{name:<18}{before} {entry['mean']:10.4f}{spread}")
    return "\n".join(lines)


def _notes(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each reason why figures are missing, with the number of pairs."""
    reasons: dict[str, dict[str, int]] = {}
    for case in measured:
        for name, reason in case.get("undefined", {}).items():
            names = reasons.setdefault(reason, {})
            names[name] = names.get(name, 0) + 1
    return [
        f"No {' and no '.join(names)} for {max(names.values())} of {len(measured)} pairs: it {reason}."
        for reason, names in reasons.items()
    ]


def _summary(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the pairs that have a value, and their mean before registration."""
    # Of pairs with and without labels, any may be the first.
    longest = max(cases, key=len)
    names = [name for name, value in longest.items() if isinstance(value, float) and not name.endswith("_before")]
    summary: dict[str, dict[str, float]] = {}
    for name in names:
        counted = [case for case in cases if not math.isnan(case.get(name, math.nan))]
        values = [case[name] for case in counted]
        if values:
            summary[name] = {"mean": statistics.fmean(values)}
            # A label that warping lost has an infinite distance, and so has the mean; no spread is left to state.
            if all(map(math.isfinite, values)):
                summary[name]["std"] = statistics.pstdev(values)
            before = [case[f"{name}_before"] for case in counted if f"{name}_before" in case]
            if before:
                summary[name]["before"] = statistics.fmean(before)
    return summary


def _rows_per_label(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        tables = {name.removesuffix("_per_label"): table for name, table in case.items() if name.endswith("_per_label")}
        for label in next(iter(tables.values()), {}):
            values = {name: float(table[label]) for name, table in tables.items()}
            rows.append({"moving_id": case["moving_id"], "fixed_id": case["fixed_id"], "label": label, **values})
    return rows

# SPDX-License-Identifier: Apache-2.0
"""Tables and the picture of a study, made of the figures of :func:`common.evaluation.trainings.train_and_evaluate`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.io.files import write_bytes
from common.io.tables import write_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: dict[str, tuple[str, str, float]] = {
    "dice": ("Dice", ".4f", 1),
    "hd95": ("HD95", ".3f", 1),
    "tre": ("TRE, mm", ".3f", 1),
    "ndv": ("NDV, %", ".4f", 1),
    "sdlogj_l2r_masked": ("SDlogJ (L2R, foreground) x 100", ".2f", 100),
    "cpu_seconds": ("CPU s per pair", ".1f", 1),
    "parameters": ("parameters", ",d", 1),
    "steps": ("steps", "d", 1),
    "train_cpu_seconds": ("CPU s of training", ".0f", 1),
    "train_memory_gb": ("GB of training", ".2f", 1),
    "inverse_error_voxels": ("inverse error, voxels", ".4f", 1),
    "inverse_consistency": ("inverse error in the foreground, mm", ".4f", 1),
    "swap_error_voxels": ("swap error, voxels", ".1e", 1),
    "peak_gb": ("GB of a step", ".2f", 1),
    "step_cpu_seconds": ("CPU s of a step", ".2f", 1),
}
"""Figure to its title in a table, its format, and what it is multiplied by."""
SHOWN = {"dice": "Dice", "hd95": "HD95", "ndv": "NDV, %"}
"""What the picture of a training-set-size study has, and the titles of its axes."""


def write_tables(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write ``NAME.csv`` with all figures and ``NAME.md`` with those of ``COLUMNS``; returns the latter's text.

    Args:
        folder: of the study.
        name: of both files.
        rows: a figure by name, and ``name``; those that end in "_before" make the first row of the Markdown.
    """
    before = {
        key.removesuffix("_before"): value for row in rows for key, value in row.items() if key.endswith("_before")
    }
    shown = [{"name": "before registration", **before}, *rows] if before else list(rows)
    columns = [column for column in COLUMNS if any(column in row for row in rows)]
    lines = [["", *(COLUMNS[column][0] for column in columns)], ["---"] * (1 + len(columns))]
    lines += [[str(row["name"]), *(_cell(row.get(column), column) for column in columns)] for row in shown]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    write_csv(folder / f"{name}.csv", rows)
    write_bytes(folder / f"{name}.md", text.encode())
    return text


def _cell(value: Any, column: str) -> str:
    _, form, factor = COLUMNS[column]
    return "–" if value is None else "∞" if value == math.inf else f"{value * factor:{form}}"


def draw_sizes(
    path: Path,
    ours: Mapping[int, Mapping[str, Any]],
    published: Mapping[int, Mapping[str, float]],
    title: str,
    published_title: str,
) -> None:
    """Draw Dice, HD95 and NDV over the number of training subjects, which has a logarithmic axis.

    Args:
        path: of the picture; its suffix says the kind, ``.svg`` or ``.png``.
        ours: figures by the number of subjects.
        published: the same, drawn in grey.
        title: of the curve of ``ours``.
        published_title: of the other one.
    """
    from matplotlib.figure import Figure

    names = [name for name in SHOWN if any(name in row for row in ours.values())]
    figure = Figure(figsize=(3.6 * len(names), 3.4), layout="constrained")
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(1, len(names), number)
        for rows, label, style in ((published, published_title, "s--"), (ours, title, "o-")):
            points = sorted((size, row[name]) for size, row in rows.items() if name in row)
            colour = "0.6" if rows is published else "tab:blue"
            axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=label)
        axes.set_xscale("log")
        axes.set_xlabel("training subjects")
        axes.set_ylabel(SHOWN[name])
        axes.grid(alpha=0.3)
    _write(path, figure)


def draw_memory(path: Path, figures: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> None:
    """Draw peak memory and time of a training step over the edge of the volume; all axes are logarithmic.

    Args:
        path: of the picture; its suffix says the kind, ``.svg`` or ``.png``.
        figures: ``peak_gb`` and ``step_cpu_seconds`` by network and edge.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    edges = sorted({edge for found in figures.values() for edge in found})
    for number, column in enumerate(("peak_gb", "step_cpu_seconds"), start=1):
        axes = figure.add_subplot(1, 2, number)
        for name, found in figures.items():
            axes.plot(sorted(found), [found[edge][column] for edge in sorted(found)], "o-", label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(edges, [str(edge) for edge in edges])
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel("edge, voxels")
        axes.set_ylabel(COLUMNS[column][0])
        axes.grid(alpha=0.3)
    _write(path, figure)


def _write(path: Path, figure: Figure) -> None:
    """With one legend of all curves."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix.removeprefix("."), dpi=150)
    write_bytes(path, buffer.getvalue())

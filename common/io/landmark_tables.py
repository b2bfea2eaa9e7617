# SPDX-License-Identifier: Apache-2.0
"""Landmarks as tables of text: any usual separator, with or without names of the columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from common.checks import InputError
from common.io.point_list import PointList

SUFFIXES = (".csv", ".tsv", ".txt")
_SEPARATORS = (";", "\t", ",")
_BLANKS = " "
_AXES = {("x", "y", "z"): None, ("r", "a", "s"): "ras", ("l", "p", "s"): "lps", ("i", "j", "k"): "voxel"}
"""Names of columns, and what they say of the coordinates; 3D Slicer's own tables have the second and third."""


def read_table_points(path: Path, spatial_dims: int = 3) -> PointList:
    """Read a table of landmarks.

    Values are separated by commas, semicolons, tabs or blanks. The first line may name the columns; then x, y and z (or
    r, a, s; l, p, s; i, j, k) are the coordinates and other columns are kept. Without names there are just as many
    columns as coordinates. Empty lines and lines that begin with # do not count.

    Args:
        path: text in UTF-8.
        spatial_dims: coordinates per point.

    Raises:
        InputError: when the file is no such table; the line is named.
    """
    lines = _lines(path)
    if not lines:
        raise InputError(f"{path} holds no landmark: expected x, y and z, or {spatial_dims} columns of numbers.")
    first = next(iter(lines.values()))
    separator = next((mark for mark in _SEPARATORS if mark in first), _BLANKS)
    if separator == "\t" and first.endswith("\t") and _number(first.split()[0]) is not None:
        # Lines of DIR-Lab may end so: blanks between numbers and behind them.
        separator = _BLANKS
    rows = {number: _cells(line, separator, path) for number, line in lines.items()}
    head = next(iter(rows.values()))
    names = None if all(_number(cell) is not None for cell in head) else head
    if names is None:
        columns, coordinates = list(range(spatial_dims)), None
        width = spatial_dims
    else:
        columns, coordinates = _columns(names, path, spatial_dims)
        del rows[next(iter(rows))]
        width = len(names)
    points = [_point(row, columns, width, path, number, names) for number, row in rows.items()]
    kept = list(rows.values())
    labels = [_label(row, names) for row in kept]

    def text(moved: Tensor) -> str:
        for row, point in zip(kept, moved.tolist(), strict=True):
            for column, value in zip(columns, point, strict=True):
                row[column] = digits(value)
        return table_text([*([] if names is None else [names]), *kept], separator)

    return PointList(torch.tensor(points, dtype=torch.float64).view(-1, spatial_dims), coordinates, labels, text)


def digits(value: float) -> str:
    """A coordinate as it is written; there is no negative zero."""
    return f"{round(value, 4) + 0.0:.4f}"


def table_text(rows: Sequence[Sequence[str]], separator: str = ",") -> str:
    """Rows as text."""
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=separator, lineterminator="\n").writerows(rows)
    return content.getvalue()


def _lines(path: Path) -> dict[int, str]:
    """Lines that count, by their numbers."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read as CSV: save it as text in UTF-8, separated by commas.") from error
    lines = enumerate(content.splitlines(), start=1)
    return {number: line for number, line in lines if line.strip() and not line.lstrip().startswith("#")}


def _cells(line: str, separator: str, path: Path) -> list[str]:
    if separator == _BLANKS:
        return line.split()
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read as CSV: save it as text in UTF-8, separated by commas.") from error


def _columns(names: Sequence[str], path: Path, spatial_dims: int) -> tuple[list[int], str | None]:
    repeated = [name for n, name in enumerate(names) if name in names[:n]]
    if repeated:
        raise InputError(f"{path} has two columns of the name {repeated[0]!r}: rename or remove one.")
    lower = [name.strip().lower() for name in names]
    for axes, coordinates in _AXES.items():
        wanted = axes[:spatial_dims]
        if all(lower.count(axis) == 1 for axis in wanted):
            return [lower.index(axis) for axis in wanted], coordinates
    tokens = ",".join(names).split() if len(names) < spatial_dims else names
    if any(_decimal_comma(token) for token in tokens):
        raise InputError(_COMMA.format(path=path, line=1))
    raise InputError(
        f"{path} has the columns {', '.join(names)}; expected x, y and z, once each, or {spatial_dims} columns "
        "of numbers."
    )


_COMMA = "{path}, line {line}: numbers with a decimal comma are not read; write them with a point."


def _point(
    row: Sequence[str], columns: Sequence[int], width: int, path: Path, line: int, names: Sequence[str] | None
) -> list[float]:
    if len(row) != width:
        expected = f"the header has {width} columns" if names is not None else f"a point has {width} coordinates"
        hint = "" if names is not None else ": name the columns in a first line if there are others"
        raise InputError(f"{path}, line {line}: {len(row)} values, but {expected}{hint}.")
    if any(_decimal_comma(row[column]) for column in columns):
        raise InputError(_COMMA.format(path=path, line=line))
    values = [_number(row[column]) for column in columns]
    found = [value for value in values if value is not None]
    if len(found) != len(columns) or not bool(torch.isfinite(torch.tensor(found)).all()):
        raise InputError(f"{path}, line {line}: x, y and z have to be numbers.")
    return found


def _label(row: Sequence[str], names: Sequence[str] | None) -> str:
    lower = [name.strip().lower() for name in names or ()]
    return next((row[lower.index(name)] for name in ("label", "name", "id") if name in lower), "")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _decimal_comma(cell: str) -> bool:
    return cell.count(",") == 1 and _number(cell) is None and _number(cell.replace(",", ".")) is not None

# SPDX-License-Identifier: Apache-2.0
"""Landmarks of 3D Slicer: .fcsv and .mrk.json. Facts: its documentation of markups, and the JSON's schema.

Both say in which coordinates they are; points are given here in RAS millimetres.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.landmark_tables import digits, table_text
from common.io.point_list import PointList

SUFFIXES = (".fcsv", ".mrk.json")
_SIGNS = {"RAS": (1.0, 1.0, 1.0), "0": (1.0, 1.0, 1.0), "LPS": (-1.0, -1.0, 1.0), "1": (-1.0, -1.0, 1.0)}
"""To RAS, from what the files name; versions before 4.11 have numbers."""
_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_FCSV = "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n# columns = " + _COLUMNS + "\n"
_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)


def read_fcsv(path: Path) -> PointList:
    """Read a list of fiducials.

    Raises:
        InputError: when the coordinate system is unknown or a line holds no point; the line is named.
    """
    lines = _text(path).splitlines()
    said = {
        key.strip().lower(): value.strip() for key, _, value in (line[1:].partition("=") for line in _comments(lines))
    }
    signs = _signs(path, said.get("coordinatesystem", "RAS"))
    columns = [name.strip() for name in said.get("columns", _COLUMNS).split(",")]
    if not {"x", "y", "z"} <= set(columns):
        raise InputError(f"{path} has the columns {', '.join(columns)}; a list of 3D Slicer has x, y and z.")
    at = [columns.index(axis) for axis in "xyz"]
    rows = {n: line.split(",") for n, line in enumerate(lines) if line.strip() and not line.startswith("#")}
    points = [_place([row[k] if k < len(row) else None for k in at], path, f"line {n + 1}") for n, row in rows.items()]
    label = columns.index("label") if "label" in columns else -1
    labels = [row[label] if 0 <= label < len(row) else "" for row in rows.values()]

    def text(moved: Tensor) -> str:
        content = list(lines)
        for (number, row), point in zip(rows.items(), (moved * signs).tolist(), strict=True):
            cells = list(row)
            for column, value in zip(at, point, strict=True):
                cells[column] = digits(value)
            content[number] = ",".join(cells)
        return "\n".join(content) + "\n"

    return PointList(_tensor(points) * signs, "ras", labels, text)


def read_markups(path: Path) -> PointList:
    """Read the control points of all markups of a JSON file; points that are not placed yet do not count.

    Raises:
        InputError: when the file is no JSON of markups, or their coordinate system, unit or positions cannot be used.
    """
    try:
        content = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} cannot be read as JSON (line {error.lineno}: {error.msg}).") from error
    listed = [(_markup_signs(path, markup), point) for markup in _markups(path, content) for point in _placed(markup)]
    places = [_place(point.get("position"), path, f"point {n + 1}") for n, (_, point) in enumerate(listed)]
    signs = torch.stack([sign for sign, _ in listed]) if listed else torch.empty(0, 3)
    labels = [str(point.get("label", "")) for _, point in listed]

    def text(moved: Tensor) -> str:
        result = copy.deepcopy(content)
        points = [point for markup in _markups(path, result) for point in _placed(markup)]
        for point, value in zip(points, (moved * signs).tolist(), strict=True):
            point["position"] = [round(number, 4) + 0.0 for number in value]
        return json.dumps(result, indent=4) + "\n"

    return PointList(_tensor(places) * signs, "ras", labels, text)


def fcsv_text(points: Tensor, labels: Sequence[str]) -> str:
    """A list of fiducials of points (N, 3), RAS millimetres."""
    rows = [
        [str(n), *map(digits, point), "0", "0", "0", "1", "1", "1", "0", label or f"F-{n}", "", ""]
        for n, (point, label) in enumerate(zip((points * _lps()).tolist(), labels, strict=True), start=1)
    ]
    return _FCSV + table_text(rows)


def markups_text(points: Tensor, labels: Sequence[str]) -> str:
    """A JSON file of one list of points (N, 3), RAS millimetres."""
    listed = [
        {"id": str(n), "label": label or f"F-{n}", "position": [round(value, 4) + 0.0 for value in point]}
        for n, (point, label) in enumerate(zip((points * _lps()).tolist(), labels, strict=True), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": listed}
    return json.dumps({"@schema": _SCHEMA, "markups": [markup]}, indent=4) + "\n"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8, as the files of 3D Slicer are.") from error


def _comments(lines: Sequence[str]) -> Iterator[str]:
    return (line for line in lines if line.startswith("#"))


def _markups(path: Path, content: Any) -> list[dict[str, Any]]:
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise InputError(f"{path} is no file of markups of 3D Slicer: it has no list of markups.")
    return markups


def _placed(markup: dict[str, Any]) -> list[dict[str, Any]]:
    points = markup.get("controlPoints") or []
    return [point for point in points if point.get("positionStatus", "defined") not in ("undefined", "missing")]


def _markup_signs(path: Path, markup: dict[str, Any]) -> Tensor:
    units = markup.get("coordinateUnits") or "mm"
    unit = units if isinstance(units, str) else str(units[0])
    if unit not in ("mm", "[mm]"):
        raise InputError(f"{path} has points in {unit}: write them in millimetres.")
    return _signs(path, str(markup.get("coordinateSystem", "LPS")))


def _signs(path: Path, system: str) -> Tensor:
    if system.upper() not in _SIGNS:
        raise InputError(f"{path} has points in the coordinate system {system}; LPS and RAS are read.")
    return torch.tensor(_SIGNS[system.upper()], dtype=torch.float64)


def _lps() -> Tensor:
    return torch.tensor(_SIGNS["LPS"], dtype=torch.float64)


def _place(cells: Any, path: Path, where: str) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
    except (TypeError, ValueError):
        values = []
    if len(values) != 3 or not np.isfinite(values).all():
        raise InputError(f"{path}, {where}: a position is three numbers.")
    return values


def _tensor(points: list[list[float]]) -> Tensor:
    return torch.tensor(points, dtype=torch.float64).view(-1, 3)

# SPDX-License-Identifier: Apache-2.0
"""Files in the words of 3D Slicer's documentation; RAS is what comes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.io.landmarks import read_points

LINES = "1,-10.5,20.25,30,0,0,0,1,1,1,0,F-1,,,2,0\nvtk_2,1,2,3,0,0,0,1,1,1,0,tip of it,note,,2,0\n"
COLUMNS = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"


@pytest.mark.parametrize(
    ("head", "signs"),
    [
        ("# Markups fiducial file version = 5.0\n# CoordinateSystem = LPS\n" + COLUMNS, -1),
        ("# Markups fiducial file version = 4.11\n# CoordinateSystem = RAS\n" + COLUMNS, 1),
        ("# Markups fiducial file version = 4.5\n# CoordinateSystem = 0\n" + COLUMNS, 1),
        ("# Markups fiducial file version = 4.10\n# CoordinateSystem = 1\n" + COLUMNS, -1),
        ("# CoordinateSystem = LPS\n", -1),
    ],
)
def test_lists_of_fiducials_of_all_versions(tmp_path: Path, head: str, signs: int) -> None:
    path = tmp_path / "f.fcsv"
    path.write_text(head + LINES)
    found = read_points(path)
    assert found.coordinates == "ras" and found.labels == ["F-1", "tip of it"]
    assert found.points.tolist() == [[signs * -10.5, signs * 20.25, 30], [signs * 1, signs * 2, 3]]
    changed = found.text(found.points + 1).splitlines()
    assert changed[: head.count("\n")] == head.splitlines()
    step = signs * 1
    assert changed[-1] == f"vtk_2,{1 + step:.4f},{2 + step:.4f},4.0000,0,0,0,1,1,1,0,tip of it,note,,2,0"


def markups(**changes: Any) -> dict[str, Any]:
    orientation = [-1.0, 0, 0, 0, -1, 0, 0, 0, 1]
    points = [
        {"id": "1", "label": "a", "position": [-10.5, 20.25, 30.0], "orientation": orientation},
        {"id": "2", "label": "b", "position": [0, 0, 0], "positionStatus": "undefined"},
    ]
    return {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points, **changes}


def save(path: Path, *listed: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"@schema": "s", "markups": listed}))
    return path


def test_several_markups_each_in_its_own_coordinates(tmp_path: Path) -> None:
    line = {"type": "Line", "coordinateSystem": "RAS", "controlPoints": [{"position": [1, 2, 3]}]}
    old = {"type": "Curve", "controlPoints": [{"position": [4, 5, 6], "label": "c"}]}
    path = save(tmp_path / "m.mrk.json", markups(), line, old)
    found = read_points(path)
    assert found.points.tolist() == [[10.5, -20.25, 30], [1, 2, 3], [-4, -5, 6]]
    assert found.labels == ["a", "", "c"]
    content = json.loads(found.text(found.points + 1))
    places = [[point["position"] for point in markup["controlPoints"]] for markup in content["markups"]]
    assert places == [[[-11.5, 19.25, 31], [0, 0, 0]], [[2, 3, 4]], [[3, 4, 7]]]
    assert content["markups"][0]["controlPoints"][0]["orientation"] == [-1, 0, 0, 0, -1, 0, 0, 0, 1]
    assert read_points(path).points.tolist() == found.points.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coordinateUnits": "um"}, "has points in um: write them in millimetres"),
        ({"coordinateUnits": ["cm", "cm", "cm"]}, "has points in cm"),
        ({"coordinateSystem": "IJK"}, "coordinate system IJK; LPS and RAS are read"),
        ({"controlPoints": [{"position": [1, 2]}]}, "point 1: a position is three numbers"),
        ({"controlPoints": [{}]}, "point 1: a position is three numbers"),
    ],
)
def test_markups_that_are_not_read(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"m\.mrk\.json.*{message}"):
        read_points(save(tmp_path / "m.mrk.json", markups(**changes)))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.mrk.json", "{", "cannot be read as JSON"),
        ("a.json", '{"pairs": []}', "no file of markups of 3D Slicer"),
        ("a.fcsv", "# CoordinateSystem = 2\n1,2,3,4\n", "coordinate system 2; LPS and RAS are read"),
        ("a.fcsv", "# CoordinateSystem = LPS\n1,2,x,4\n", "line 2: a position is three numbers"),
        ("a.fcsv", "# columns = id,a,b\n1,2,3\n", "has the columns id, a, b"),
    ],
)
def test_files_that_are_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_points(tmp_path / name)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.io.landmarks import (
    COORDINATES,
    check_coordinates,
    points_text,
    read_landmarks,
    read_points,
    to_coordinates,
    to_world,
)
from common.spatial.world import Grid

# 2 mm, LAS, in front of the origin.
GRID = Grid((90, 100, 80), torch.tensor([[-2.0, 0, 0, 89], [0, 2, 0, 30], [0, 0, 2, -70], [0, 0, 0, 1]]))
VOXELS = torch.tensor([[10.0, 20, 30], [45, 50, 40], [80, 90, 70], [44, 12.5, 60]], dtype=torch.float64)
RAS = VOXELS * torch.tensor([-2.0, 2, 2]) + torch.tensor([89.0, 30, -70])
FACTORS = {"ras": torch.tensor([1.0, 1, 1]), "lps": torch.tensor([-1.0, -1, 1])}


@pytest.mark.parametrize(
    "text",
    [
        "1.5,2,3\r\n4,5e1,-6\r\n\r\n",
        "1.5;2;3\n4;50;-6\n",
        "1.5\t2\t3\n4\t50\t-6\n",
        "1.5\t 2\t 3\t\n 4\t50\t-6\t\n",
        "  1.5 2  3 \n4 50 -6\n",
        "# x y z\n1.5 2 3\n4 50 -6\n",
        "\ufeffx,y,z\n1.5,2,3\n4,50,-6\n",
        "name;Z;X;Y\na;3;1.5;2\nb;-6;4;50\n",
        "x y z\n1.5 2 3\n4 50 -6\n",
        '"label", "x", "y", "z"\n"one, two", 1.5, 2, 3\n"", 4, 50, -6\n',
        "label\tl\tp\ts\tdefined\nF-1\t1.5\t2\t3\t1\nF-2\t4\t50\t-6\t1\n",
    ],
)
def test_tables_of_any_separator_with_or_without_names(tmp_path: Path, text: str) -> None:
    file = tmp_path / "points.csv"
    file.write_bytes(text.encode())
    found = read_points(file)
    assert found.points.tolist() == [[1.5, 2, 3], [4, 50, -6]]
    assert found.coordinates == ("lps" if "\tl\t" in text else None)
    # What is written back is read as what was written.
    file.write_text(found.text(found.points + 1))
    again = read_points(file)
    assert again.points.tolist() == [[2.5, 3, 4], [5, 51, -5]] and again.labels == found.labels


def test_landmarks_of_images_in_two_dimensions(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n")
    assert read_landmarks(tmp_path / "a.csv", spatial_dims=2).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", "line 1: 2 values, but a point has 3 coordinates"),
        ("1,2,3\n1,2,3,4\n", "line 2: 4 values, but a point has 3 coordinates: name the columns"),
        ("1,2,nan\n", "line 1: x, y and z have to be numbers"),
        ("x,y,z\n1,2,abc\n", "line 2: x, y and z have to be numbers"),
        ("x;y;z\n1,5;2;3\n", "line 2: numbers with a decimal comma are not read; write them with a point"),
        ("1,5;2;3\n", "line 1: numbers with a decimal comma"),
        ("1,5\t2\t3\n", "line 1: numbers with a decimal comma"),
        ("1,5 2 3\n", "line 1: numbers with a decimal comma"),
        ("x y z\n1 2,5 3\n", "line 2: numbers with a decimal comma"),
        ("a,b,c\n1,2,3\n", "columns a, b, c; expected x, y and z"),
        ("x,y,z,x\n1,2,3,4\n", "two columns of the name 'x'"),
    ],
)
def test_a_line_that_is_no_point_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "points.csv").write_text(text)
    with pytest.raises(InputError, match=rf"points\.csv.*{message}"):
        read_landmarks(tmp_path / "points.csv")


def test_missing_and_empty_landmark_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        read_landmarks(tmp_path / "none.csv")
    for text in ("\n", "x,y,z\n"):
        (tmp_path / "empty.csv").write_text(text)
        with pytest.raises(InputError, match=r"empty\.csv holds no landmark"):
            read_landmarks(tmp_path / "empty.csv")


# Coordinates


def written(path: Path, points: Tensor) -> Path:
    np.savetxt(path, points.numpy(), delimiter=",", fmt="%.6f")
    return path


def in_coordinates(coordinates: str) -> Tensor:
    voxels = {"voxel": VOXELS, "voxel_from_1": VOXELS + 1}
    return voxels[coordinates] if coordinates in voxels else RAS * FACTORS[coordinates]


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_coordinates_give_the_same_voxels(tmp_path: Path, coordinates: str) -> None:
    path = written(tmp_path / "a.csv", in_coordinates(coordinates))
    torch.testing.assert_close(read_landmarks(path, 3, GRID, coordinates), VOXELS)
    world = to_world(in_coordinates(coordinates), coordinates, GRID)
    torch.testing.assert_close(world, RAS)
    torch.testing.assert_close(to_coordinates(world, coordinates, GRID), in_coordinates(coordinates))
    if coordinates.startswith("voxel"):
        torch.testing.assert_close(read_landmarks(path, 3, None, coordinates), VOXELS)


def test_landmarks_of_dir_lab_count_voxels_from_1(tmp_path: Path) -> None:
    path = tmp_path / "copd1_300_iBH_xyz_r1.txt"
    path.write_text("1\t 1\t 1\n 512\t512\t121\n")
    found = read_landmarks(
        path, 3, Grid((512, 512, 121), torch.diag(torch.tensor([0.625, 0.625, 2.5, 1]))), "voxel_from_1"
    )
    assert found.tolist() == [[0, 0, 0], [511, 511, 120]]


@pytest.mark.parametrize("truth", ["voxel", "ras", "lps"])
@pytest.mark.parametrize("stated", ["voxel", "ras", "lps"])
def test_points_that_lie_in_their_image_in_other_coordinates_only(tmp_path: Path, truth: str, stated: str) -> None:
    path = written(tmp_path / "a.csv", in_coordinates(truth))
    if truth == stated:
        read_landmarks(path, 3, GRID, stated)
        return
    with pytest.raises(InputError, match=rf"of 4 points lie outside of the image as .* state --coordinates .*{truth}"):
        read_landmarks(path, 3, GRID, stated)


@pytest.mark.parametrize("said", ["RAS", "LPS"])
def test_files_of_slicer_that_say_the_wrong_coordinates(tmp_path: Path, said: str) -> None:
    truth = {"RAS": "lps", "LPS": "ras"}[said]
    rows = [
        f"{n},{','.join(map(str, point))},0,0,0,1,1,1,0,,," for n, point in enumerate(in_coordinates(truth).tolist())
    ]
    columns = "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
    (tmp_path / "a.fcsv").write_text("\n".join([f"# CoordinateSystem = {said}", columns, *rows]))
    with pytest.raises(
        InputError, match=r"a\.fcsv: .* 4 of 4 inside as LPS .*: correct what the file says of its coordi"
    ):
        read_landmarks(tmp_path / "a.fcsv", 3, GRID)


def test_landmarks_of_another_image_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", VOXELS + 3000)
    with pytest.raises(
        InputError, match=r"a\.csv: 4 of 4 points lie outside .* give the landmarks of this image, before"
    ):
        read_landmarks(path, 3, GRID)
    # One of many may be outside.
    many = torch.cat([VOXELS.repeat(5, 1), torch.full((1, 3), -2.0)])
    assert len(read_landmarks(written(tmp_path / "a.csv", many), 3, GRID)) == 21


def test_the_remedy_names_option_and_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", RAS)
    with pytest.raises(
        InputError, match="state --coordinates ras, or in a data set name the columns r, a, s in a first"
    ):
        read_landmarks(path, 3, GRID)
    text = path.read_text()
    path.write_text("r,a,s\n" + text)
    torch.testing.assert_close(read_landmarks(path, 3, GRID), VOXELS)


def test_statistics_say_how_many(tmp_path: Path) -> None:
    sentence = "3 of 4 points lie outside of the image as voxels, but 4 of 4 inside as RAS millimetres"
    with pytest.raises(InputError, match=sentence):
        read_landmarks(written(tmp_path / "a.csv", RAS), 3, GRID, "voxel")


def test_points_of_another_image_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_coordinates("a.csv", VOXELS, "voxel", GRID)
        # By less than a voxel: rounding.
        check_coordinates("a.csv", torch.tensor([[-0.5, 0, 0], [89.9, 99, 79]]).double(), "voxel", GRID)
        assert not caplog.records
        check_coordinates("a.csv", VOXELS + 3000, "voxel", GRID)
    assert "4 of 4 points lie outside of the image as voxels" in caplog.text


def test_millimetres_need_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds RAS millimetres, whose voxels an image has to tell"):
        read_landmarks(written(tmp_path / "a.csv", RAS), coordinates="ras")


def test_a_format_becomes_another_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("name,x,y,z\napex,1,2,3\n,4,5,6\n")
    found = read_points(tmp_path / "in.csv")
    for name in ("out.fcsv", "out.mrk.json", "out.tsv"):
        (tmp_path / name).write_text(points_text(name, "in.csv", found, found.points))
        again = read_points(tmp_path / name)
        assert again.points.tolist() == [[1, 2, 3], [4, 5, 6]], name
        assert again.labels[0] == "apex"
    for source in ("out.fcsv", "out.mrk.json"):
        text = points_text("b.csv", source, read_points(tmp_path / source), found.points)
        assert text == "label,x,y,z\napex,1.0000,2.0000,3.0000\nF-2,4.0000,5.0000,6.0000\n"

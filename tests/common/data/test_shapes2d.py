# SPDX-License-Identifier: Apache-2.0
"""Triangles and circles: where they lie, what is bright, what is written."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, read_section
from common.data.shapes2d import Shapes, draw_pairs, draw_shapes, generate_shapes2d, main, provide_shapes2d, render

SMALL: dict[str, Any] = {"num_subjects": 8, "size": 24, "validation": 2, "test": 3, "progress": False}


def random(seed: int = 0) -> np.random.RandomState:
    # The generator that the published set is drawn with.
    return np.random.RandomState(seed)  # noqa: NPY002


def one(triangle: bool, angle: float = 0.0) -> Shapes:
    return Shapes(*(np.array([value]) for value in (0.5, 0.6, 0.3, angle, triangle)))


def area(image: np.ndarray) -> float:
    return float(image.mean())


@pytest.mark.parametrize("triangle", [False, True])
def test_a_filled_shape_has_its_area_and_centre(triangle: bool) -> None:
    image = render(one(triangle), 201)[0]
    expected = 3 * math.sqrt(3) / 4 * 0.3**2 if triangle else math.pi * 0.3**2
    assert area(image) == pytest.approx(expected, rel=0.02)
    places = np.indices(image.shape) / 200
    centre = (places * image).sum((1, 2)) / image.sum()
    np.testing.assert_allclose(centre, (0.5, 0.6), atol=0.005)
    assert image.dtype == np.float32 and 0 <= image.min() and 0.99 < image.max() <= 1


def test_corners_of_a_triangle_lie_on_its_circle_and_turn_with_the_angle() -> None:
    def farthest(angle: float) -> np.ndarray:
        image = render(one(True, angle), 401)[0]
        places = np.argwhere(image > 0.5) / 400 - (0.5, 0.6)
        place: np.ndarray = places[np.argmax(np.hypot(*places.T))]
        return place

    assert np.hypot(*farthest(0.0)) == pytest.approx(0.3, abs=0.01)
    turned = [math.atan2(*farthest(angle)) for angle in (0.0, 0.4)]
    assert (turned[0] - turned[1] - 0.4 + 0.1) % (2 * math.pi / 3) == pytest.approx(0.1, abs=0.03)


def test_a_hollow_shape_is_the_rim_of_the_filled_one() -> None:
    filled, hollow = (render(one(True), 101, hollow)[0] for hollow in (False, True))
    # Values of float32 in [0, 1]: ten times their rounding.
    np.testing.assert_allclose(hollow, 4 * filled * (1 - filled), atol=1e-6)


def test_shapes_are_drawn_in_their_ranges_and_by_the_seed_alone() -> None:
    shapes = draw_shapes(random(), 4000)
    for values, low, high in zip(shapes, (0.4, 0.4, 0.2, 0), (0.7, 0.7, 0.4, 2 * math.pi), strict=False):
        assert low <= values.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < values.max() < high
    assert shapes.triangle.mean() == pytest.approx(0.5, abs=0.03)
    np.testing.assert_array_equal(np.stack(draw_shapes(random(), 4000)), np.stack(shapes))
    assert set(draw_pairs(random(), 3, 200).flatten()) == {0, 1, 2}


def test_the_folder_is_read_as_a_data_list_of_two_dimensions(tmp_path: Path) -> None:
    folder = generate_shapes2d(tmp_path / "set", **SMALL)
    sections = {name: read_section(folder, "datalist", name) for name in ("training", "validation", "test")}
    assert [len(listing.subjects) for listing in sections.values()] == [3, 2, 3]
    assert len(list(sections["test"].every_pair())) == 6
    item = PairDataset(sections["validation"].subjects, LoadSubjectd(), progress=False)[0, 1]
    assert item["moving"].shape == (1, 24, 24) and 0.9 < item["moving"].max() <= 1
    assert bool(((item["moving"] > 0.2) == (item["moving_label"] == 1)).all())


def test_equal_arguments_give_equal_files_and_a_complete_folder_is_kept(tmp_path: Path) -> None:
    folders = [generate_shapes2d(tmp_path / name, **SMALL) for name in ("a", "b")]
    contents = [(folder / "dataset.json").read_text() for folder in folders]
    assert contents[0] == contents[1]
    listed = json.loads(contents[0])["sha256"]
    assert all(hashlib.sha256((folders[0] / name).read_bytes()).hexdigest() == value for name, value in listed.items())
    before = (folders[0] / "dataset.json").stat().st_mtime_ns
    assert generate_shapes2d(folders[0], **SMALL) == folders[0] == provide_shapes2d(folders[0])
    assert (folders[0] / "dataset.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="exists and is not the data set"):
        generate_shapes2d(folders[0], **{**SMALL, "hollow": True})


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"size": 8}, "size 8 cannot"), ({"seed": -1}, "seed is -1"), ({"num_subjects": 6}, "for the test leave 1")],
)
def test_impossible_arguments_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate_shapes2d(tmp_path / "set", **{**SMALL, **changes})
    assert not (tmp_path / "set").exists()


def test_the_command_writes_the_folder_or_ends_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--output_dir", str(tmp_path / "set"), "--num_subjects", "4", "--validation", "1", "--test", "0"]
    main([*arguments, "--size", "16", "--hollow"])
    assert json.loads((tmp_path / "set" / "dataset.json").read_text())["generator"]["hollow"] is True
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--size", "4"])
    assert stop.value.code == 1 and "\nERROR: The size 4 cannot be used" in capsys.readouterr().err

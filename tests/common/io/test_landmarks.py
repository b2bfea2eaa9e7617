# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.checks import InputError
from common.io.landmarks import read_landmarks


def test_landmark_files_are_read_as_the_challenge_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("1.5,2,3\r\n4,5e1,-6\r\n\r\n")
    assert read_landmarks(file).tolist() == [[1.5, 2, 3], [4, 50, -6]]
    file.write_text("1,2\n")
    assert read_landmarks(file, spatial_dims=2).tolist() == [[1, 2]]


@pytest.mark.parametrize("text", ["x,y,z\n1,2,3\n", "1,2\n", "1;2;3\n", "1,2,nan\n", "1,2,3,4\n"])
def test_a_line_that_is_no_point_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text)
    with pytest.raises(InputError, match=r"points\.csv, line 1: .* is not 3 voxel coordinates"):
        read_landmarks(file)


def test_missing_and_empty_landmark_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        read_landmarks(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(InputError, match=r"empty\.csv holds no landmark"):
        read_landmarks(tmp_path / "empty.csv")

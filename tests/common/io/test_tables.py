# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.checks import InputError
from common.io.tables import read_csv, read_table, write_csv, write_json


def test_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1}, {"x": 2, "y": 0.123456789}])
    assert read_csv(tmp_path / "a.csv") == [{"x": "1", "y": ""}, {"x": "2", "y": "0.123457"}]


def test_missing_table_is_empty(tmp_path: Path) -> None:
    assert read_csv(tmp_path / "none.csv") == []


def test_rows_are_found_by_their_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbfx, y\n1, 2\n\n\n3,"4\n5"\n')
    names, rows = read_table(tmp_path / "a.csv")
    assert names == ["x", "y"]
    assert rows == {2: {"x": "1", "y": "2"}, 6: {"x": "3", "y": "4\n5"}}
    assert read_csv(tmp_path / "a.csv") == list(rows.values())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x,y\n1,2\n\n3,4,5\n", "line 4: 3 values, but the header has 2 columns"),
        (b"x,y\n1\n", "line 2: 1 values, but the header has 2 columns"),
        (b"x,y,x\n1,2,3\n", "two columns of the name 'x'"),
        (b"name\n\xe4\n", "cannot be read as CSV: save it as text in UTF-8"),
    ],
)
def test_tables_that_are_none_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"a.csv.*{message}"):
        read_csv(tmp_path / "a.csv")


def test_json_holds_no_literal_that_readers_refuse(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf")], 3: (1, 2)})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content == {"a": None, "b": ["inf"], "3": [1, 2]}

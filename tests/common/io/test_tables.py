# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.io.tables import read_csv, write_bytes, write_csv, write_json


def test_columns_are_those_of_all_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", [{"x": 1}, {"x": 2, "y": 0.123456789}])
    assert read_csv(tmp_path / "a.csv") == [{"x": "1", "y": ""}, {"x": "2", "y": "0.123457"}]


def test_missing_table_is_empty(tmp_path: Path) -> None:
    assert read_csv(tmp_path / "none.csv") == []


def test_json_holds_no_literal_that_readers_refuse(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf")], 3: (1, 2)})

    def refuse(text: str) -> None:
        raise AssertionError(text)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content == {"a": None, "b": ["inf"], "3": [1, 2]}


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="the disk is full"):
        write_bytes(tmp_path / "a", b"content")
    assert list(tmp_path.iterdir()) == []

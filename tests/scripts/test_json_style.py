# SPDX-License-Identifier: Apache-2.0
"""How the JSON of bundles is laid out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.json_style import style


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "{}\n"),
        ({"a": 1, "b": "ü", "c": None, "d": 5.0}, '{\n    "a": 1,\n    "b": "ü",\n    "c": null,\n    "d": 5.0\n}\n'),
        ({"a": {"b": [1, 2], "c": {"d": True}}}, '{\n    "a": {"b": [1, 2], "c": {"d": true}}\n}\n'),
        ({"a": [{"b": 1}, {}]}, '{\n    "a": [\n        {"b": 1},\n        {}\n    ]\n}\n'),
    ],
)
def test_short_and_simple_items_stand_on_one_line(content: Any, expected: str) -> None:
    assert style(content) == expected


@pytest.mark.parametrize(("spare", "lines"), [(0, 3), (-1, 5)])
def test_a_line_ends_within_120_columns(spare: int, lines: int) -> None:
    # Indent, key, braces, quotes and the comma behind take the rest.
    text = "x" * (120 - len('    "a": {"b": ""},') - spare)
    styled = style({"a": {"b": text}})
    assert len(styled.splitlines()) == lines
    assert json.loads(styled) == {"a": {"b": text}}

# SPDX-License-Identifier: Apache-2.0
"""The house style of the bundles' JSON: an object or list on one line where it fits and is simple enough to read."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 120
INDENT = 4


def style(content: Any) -> str:
    """Text of a JSON file.

    An object or list stands on one line where that ends within 120 columns and holds no more than one object;
    otherwise each of its entries has a line of its own. The outermost always has.

    Args:
        content: what ``json.loads`` gives.

    Returns:
        The text, with a newline at its end.
    """
    return _lines(content, 0, WIDTH) + "\n"


def _lines(content: Any, depth: int, used: int) -> str:
    """Text of an item at a depth of nesting, behind ``used`` columns of indent and key."""
    line = json.dumps(content, ensure_ascii=False)
    # One column for the comma behind it.
    fits = used + len(line) + 1 <= WIDTH and _objects(content) <= 2
    if not content or not isinstance(content, dict | list) or fits:
        return line
    inner = " " * INDENT * (depth + 1)
    if isinstance(content, dict):
        keys = [f"{json.dumps(key, ensure_ascii=False)}: " for key in content]
        values = list(content.values())
    else:
        keys, values = [""] * len(content), content
    entries = [
        inner + key + _lines(value, depth + 1, len(inner) + len(key)) for key, value in zip(keys, values, strict=True)
    ]
    opening, closing = ("{", "}") if isinstance(content, dict) else ("[", "]")
    return opening + "\n" + ",\n".join(entries) + "\n" + " " * INDENT * depth + closing


def _objects(content: Any) -> int:
    """How many objects there are in an item, itself included; a list around them counts as one."""
    if isinstance(content, dict):
        return 1 + sum(_objects(value) for value in content.values())
    if isinstance(content, list):
        inside = sum(_objects(value) for value in content)
        return inside + 1 if inside else 0
    return 0

# SPDX-License-Identifier: Apache-2.0
"""Published splits and pair lists, as facts with their sources; every pair is ``[fixed, moving]``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.checks import InputError

_FOLDER = Path(__file__).parent


def split_names() -> list[str]:
    """Names of the splits that are shipped."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_split(name: str) -> dict[str, Any]:
    """Read one published split.

    Args:
        name: one of :func:`split_names`, for example "oasis_dp_v1".

    Returns:
        The content of the file: ids per section, and pairs as [fixed, moving]; "comment" and "source" say where it is
        from.

    Raises:
        InputError: there is no split of that name.
    """
    path = _FOLDER / f"{name}.json"
    if name not in split_names():
        raise InputError(f"There is no published split '{name}'; available are {', '.join(split_names())}.")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content

# SPDX-License-Identifier: Apache-2.0
"""Official state dicts under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from common.checks import InputError

T = TypeVar("T")


def rename_keys(state_dict: Mapping[str, T], key_map: Mapping[str, str | None]) -> dict[str, T]:
    """Rename the entries of an official state dict.

    Args:
        state_dict: official name to tensor.
        key_map: regular expression to replacement, tried in order with ``re.sub``; the first that matches counts.
            None drops the entry.

    Returns:
        Our name to tensor, in the same order.

    Raises:
        InputError: when no expression matches a name, or two names become one.
    """
    renamed: dict[str, T] = {}
    for key, value in state_dict.items():
        pattern = next((pattern for pattern in key_map if re.search(pattern, key)), None)
        if pattern is None:
            raise InputError(f"The state dict holds {key!r}, which this network does not know.")
        replacement = key_map[pattern]
        if replacement is None:
            continue
        name = re.sub(pattern, replacement, key)
        if name in renamed:
            raise InputError(f"The state dict holds {name!r} twice, the second time as {key!r}.")
        renamed[name] = value
    return renamed

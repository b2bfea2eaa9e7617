# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints: out of their containers, under our names, compared with what a network expects."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from common.checks import InputError

T = TypeVar("T")
CONTAINER = "model_state_dict"
"""Entry of a published training checkpoint that holds the network."""
_WRAPPED = "module."


def unpack_state_dict(content: Any, source: str) -> dict[str, Tensor]:
    """The network's state dict out of what an official checkpoint file holds.

    Args:
        content: a state dict, or a training checkpoint {"model_state_dict": state dict, "optimizer_state_dict": ...};
            names with or without the leading "module." of a data-parallel wrapper.
        source: name of the file, for the message.

    Returns:
        Official name to tensor, in the order of the file.

    Raises:
        InputError: when there is no state dict in it.
    """
    state = content.get(CONTAINER, content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        held = (
            f"the entries {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise InputError(f"{source} holds {held}; expected a state dict, or one under {CONTAINER!r}.")
    if all(key.startswith(_WRAPPED) for key in state):
        return {key.removeprefix(_WRAPPED): value for key, value in state.items()}
    return dict(state)


def differing_keys(found: Mapping[str, Tensor], expected: Mapping[str, Sequence[int]]) -> list[str]:
    """What keeps a state dict from fitting, one phrase per entry; empty when it fits.

    Args:
        found: name to tensor.
        expected: name to shape.
    """
    differing = [f"missing {key}" for key in expected if key not in found]
    differing += [f"unknown {key}" for key in found if key not in expected]
    differing += [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != tuple(shape)
    ]
    return differing


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

# SPDX-License-Identifier: Apache-2.0
"""Official checkpoints: out of their containers, under our names, compared with what a network expects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from common.checks import InputError

# Of a data-parallel network, and of one with the loss of ICON.
_WRAPPERS = ("module.", "regis_net.")
# What others call it who train the same networks.
_OTHERS_CONTAINER = "state_dict"


class Converted(NamedTuple):
    """A replacement whose tensor is stored otherwise, for instance with its channels in another order.

    Attributes:
        name: ours, with references to groups of the expression.
        to_ours: official tensor to ours.
        to_official: the way back.
    """

    name: str
    to_ours: Callable[[Tensor], Tensor]
    to_official: Callable[[Tensor], Tensor]


KeyMap = Mapping[str, "str | Converted | None"]
"""Regular expression of official names to our name; None drops the entry."""


def unpack_state_dict(content: Any, source: str, container: str | None, parts: Sequence[str] = ()) -> dict[str, Tensor]:
    """The network's state dict out of what an official checkpoint file holds.

    Args:
        content: a state dict, or a training checkpoint that holds one among other things; names with or without the
            leading "module." of a data-parallel wrapper or "regis_net." of ICON's.
        source: name of the file, for the message.
        container: entry of a training checkpoint that holds the network's state dict, None where such files hold
            nothing else; "state_dict" is taken as well.
        parts: entries that together hold it, where they are all there.

    Returns:
        Official name to tensor, in the order of the file.

    Raises:
        InputError: when there is no state dict in it.
    """
    if parts and isinstance(content, Mapping) and all(part in content for part in parts):
        each = {part: unpack_state_dict(content[part], f"{source}, entry {part},", container) for part in parts}
        return {f"{part}.{name}": value for part, state in each.items() for name, value in state.items()}
    held = [name for name in (container, _OTHERS_CONTAINER) if isinstance(content, Mapping) and name in content]
    state = content[held[0]] if held else content
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        holds = (
            f"the entries {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise InputError(
            f"{source} holds {holds}; expected a state dict, or one under {container or _OTHERS_CONTAINER!r}."
        )
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in state):
            return {key.removeprefix(wrapper): value for key, value in state.items()}
    return dict(state)


def pack_state_dict(state: Mapping[str, Tensor], container: str | None, parts: Sequence[str] = ()) -> dict[str, Any]:
    """What an official checkpoint file holds: the state dict in its container, or in the parts that all of it is of.

    Args:
        state: official name to tensor.
        container: entry for the whole, None for none.
        parts: entries for the names that begin with them.
    """
    packed: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part not in packed:
            packed = {}
            break
        packed[part][rest] = value
    if packed and all(packed.values()):
        return packed
    return dict(state) if container is None else {container: dict(state)}


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


def rename_keys(state_dict: Mapping[str, Any], key_map: KeyMap) -> dict[str, Any]:
    """Rename the entries of an official state dict, and convert those that are stored otherwise.

    Args:
        state_dict: official name to tensor.
        key_map: regular expression to replacement, tried in order with ``re.sub``; the first that matches counts.
            A replacement is our name, a :class:`Converted`, or None, which drops the entry.

    Returns:
        Our name to tensor, in the same order.

    Raises:
        InputError: when no expression matches a name, or two names become one.
    """
    renamed: dict[str, Any] = {}
    for key, value in state_dict.items():
        name = find_place(key, key_map)
        if name is None:
            continue
        if name in renamed:
            raise InputError(f"The state dict holds {name!r} twice, the second time as {key!r}.")
        replacement = key_map[_pattern(key, key_map)]
        renamed[name] = replacement.to_ours(value) if isinstance(replacement, Converted) else value
    return renamed


def find_place(key: str, key_map: KeyMap) -> str | None:
    """Our name of an official entry, None where it is dropped.

    Raises:
        InputError: when no expression matches it.
    """
    pattern = _pattern(key, key_map)
    replacement = key_map[pattern]
    if replacement is None:
        return None
    return re.sub(pattern, replacement.name if isinstance(replacement, Converted) else replacement, key)


def convert_back(value: Tensor, key: str, key_map: KeyMap) -> Tensor:
    """A tensor of ours as the official entry ``key`` holds it."""
    replacement = key_map[_pattern(key, key_map)]
    return replacement.to_official(value) if isinstance(replacement, Converted) else value


def _pattern(key: str, key_map: KeyMap) -> str:
    pattern = next((pattern for pattern in key_map if re.search(pattern, key)), None)
    if pattern is None:
        raise InputError(f"The state dict holds {key!r}, which this network does not know.")
    return pattern

# SPDX-License-Identifier: Apache-2.0
"""What importer, exporter and golden tests ask of a family of networks, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.weights.state_dicts import KeyMap, convert_back, differing_keys, find_place, rename_keys

_LISTED = 8
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """What a state dict says of its network.

    Attributes:
        arguments: those of the network's constructor that its weights show.
        size: spatial size of the training images, where constant entries of the official layout show it.
    """

    arguments: dict[str, Any]
    size: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Family:
    """One published code: its networks here, and how its checkpoints are laid out.

    Attributes:
        network: class of the networks.
        describe_official: reads an official state dict, and what the user says of it with ``--variant``.
        describe_ours: reads a state dict under our names, and the arguments that the bundle is configured with.
        key_map: official names to ours, of the network with these arguments.
        entries: (official name, shape) of every entry but the constant ones, in the official order.
        is_constant: whether an official entry is a constant that our networks make themselves.
        constants: the constant entries of the network with these arguments, for images of a size, None where there are
            none; raises InputError for a size that the published network cannot take.
        kinds: arguments that a bundle's network and a checkpoint must share; all others are options.
        untold: arguments that leave no trace in the weights.
        tied: arguments that the weights may be bound to without telling them; where they do not, the bundle's hold.
        fitting: values of untold arguments with which a network of any size can be made.
        variants: what ``--variant`` may be.
        container: entry of an official file that holds the state dict; None where the file is the state dict itself.
        parts: entries of an official file that hold a state dict each, of one part of the network, whose name all names
            begin with here.
        read: reads a file of a form of its own: its official entries, and arguments that it states beside them. None
            where files are as ``container`` and ``parts`` say.
        pack: what an official file of these entries holds, of a network with these arguments for images of a size;
            None likewise.
    """

    network: type[nn.Module]
    describe_official: Callable[[Mapping[str, Tensor], str | None], Description]
    describe_ours: Callable[[Mapping[str, Tensor], Arguments], Description]
    key_map: Callable[[Arguments], KeyMap]
    entries: Callable[[Arguments], Iterable[tuple[str, tuple[int, ...]]]]
    is_constant: Callable[[str], bool] = lambda name: False
    constants: Callable[[Arguments, Sequence[int]], dict[str, Tensor]] | None = None
    kinds: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    fitting: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    container: str | None = "model_state_dict"
    parts: tuple[str, ...] = ()
    read: Callable[[Path], tuple[dict[str, Tensor], dict[str, Any]]] | None = None
    pack: Callable[[dict[str, Tensor], Arguments, Sequence[int]], dict[str, Any]] | None = None

    def shapes(self, arguments: Arguments) -> dict[str, tuple[int, ...]]:
        """Our name to shape, in our order."""
        with torch.device("meta"):
            network = self.network(**{**self.fitting, **arguments})
        return {name: tuple(value.shape) for name, value in network.state_dict().items()}

    def title(self, arguments: Arguments) -> str:
        """The network in words, such as "plain network"."""
        return " ".join([*(str(arguments[name]) for name in self.kinds), "network"])


def to_ours(family: Family, state: Mapping[str, Tensor], arguments: Arguments) -> dict[str, Tensor]:
    """Official entries under our names, in the order of our network.

    Constant entries are left out, and so are those that the key map drops, which may be absent.

    Args:
        family: of the network.
        state: official name to tensor.
        arguments: of the network, as ``family.describe_official`` found them.

    Returns:
        Our name to tensor, float32 but for counters.

    Raises:
        InputError: with the list of differing keys, or when a value is NaN or infinite.
    """
    key_map = family.key_map(arguments)
    given = {name: value for name, value in state.items() if not family.is_constant(name)}
    expected = {
        name: shape
        for name, shape in family.entries(arguments)
        if name in given or find_place(name, key_map) is not None
    }
    _refuse(family, differing_keys(given, expected), arguments)
    broken = next((name for name, value in given.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise InputError(f"The entry {broken} has NaN or infinite values; the checkpoint is damaged, copy it anew.")
    renamed = rename_keys(given, key_map)
    return {name: _stored(renamed[name]) for name in family.shapes(arguments)}


def to_official(
    family: Family, state: Mapping[str, Tensor], arguments: Arguments, size: Sequence[int] | None
) -> dict[str, Tensor]:
    """Our entries under the official names and in the official order, with the constant entries for a size.

    Entries that the key map drops come back as zeros.

    Args:
        family: of the network.
        state: our name to tensor.
        arguments: of the network.
        size: spatial size that the official network is to be built for; not needed without constant entries.

    Returns:
        Official name to tensor, float32 but for counters.

    Raises:
        InputError: with the list of differing keys, or for a size that the official network cannot take.
    """
    _refuse(family, differing_keys(state, family.shapes(arguments)), arguments)
    constants = {} if family.constants is None or size is None else family.constants(arguments, size)
    key_map = family.key_map(arguments)
    official = {}
    for name, shape in family.entries(arguments):
        place = find_place(name, key_map)
        official[name] = torch.zeros(shape) if place is None else convert_back(state[place], name, key_map)
    return {name: _stored(value) for name, value in official.items()} | constants


def _stored(value: Tensor) -> Tensor:
    return (value.detach().float() if value.is_floating_point() else value).contiguous()


def _refuse(family: Family, differing: Sequence[str], arguments: Arguments) -> None:
    if differing:
        more = f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        options = ", ".join(f"{name} {value}" for name, value in arguments.items() if name not in family.kinds)
        raise InputError(
            f"The weights do not fit the {family.title(arguments)} with {options}: "
            f"{'; '.join(differing[:_LISTED])}{more}."
        )

# SPDX-License-Identifier: Apache-2.0
"""LKU-Net's published checkpoints: what they tell of the network, and their entries under our names and back.

They are bare state dicts, with or without the head of a way back that the published code never calls. Those of the
network that works at half resolution hold its last layers, too, so that they do not tell it from the other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.networks.lku_net import KERNEL_SIZES, WAYS_UP, LKUNet
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place

_BRANCHES = {"regularKernel": "regular", "largeKernel": "large", "oneKernel": "point"}
_LEVELS = len(WAYS_UP)
UNUSED = "dc10.0.weight"
"""The head that is never called."""
_FIRST, _LARGE = "eninput.0.weight", "ec3.layer_largeKernel.0.weight"


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments, of which "half_res" counts."""
    places: dict[str, str | None] = {re.escape(UNUSED): None, r"^dc9\.0\.": "head."}
    for index, official in enumerate(("eninput", "ec1")):
        places |= _activated(official, f"first.{index}")
    for level in range(_LEVELS):
        places |= _activated(f"ec{2 * level + 2}", f"down.{level}.0")
        mixed = f"^ec{2 * level + 3}\\.layer_"
        places |= {f"{mixed}{branch}\\.0\\.": f"down.{level}.1.{ours}." for branch, ours in _BRANCHES.items()}
        places[f"{mixed}nonlinearity\\."] = f"down.{level}.1.activation."
        # The way up counts from the coarsest level there, from the finest here.
        step, up = _LEVELS - 1 - level, level - int(arguments["half_res"])
        for index, part in ((2 * step + 1, "first"), (2 * step + 2, "second")):
            places |= _activated(f"dc{index}", f"up.{up}.{part}" if up >= 0 else None)
        way = f"up.{up}." if up >= 0 else None
        places[f"^up{step + 1}\\.0\\."] = way and f"{way}enlarge."
        places[f"^up{step + 1}\\.1\\."] = way and f"{way}activation."
    return places


def _activated(official: str, ours: str | None) -> dict[str, str | None]:
    return {rf"^{official}\.{index}\.": ours and f"{ours}.{part}." for index, part in enumerate(("conv", "activation"))}


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read width, kernel size and number of axes off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not an LKU-Net, or a variant.
    """
    if variant is not None:
        raise InputError(f"Checkpoints of LKU-Net have no variant {variant}; leave --variant out.")
    return Description(_arguments(state, _FIRST, _LARGE))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, where the last layers are missing at half resolution.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not an LKU-Net.
    """
    arguments = _arguments(state, "first.0.conv.weight", "down.0.1.large.weight")
    return Description({**arguments, "half_res": f"up.{_LEVELS - 1}.enlarge.weight" not in state})


def _arguments(state: Mapping[str, Tensor], first: str, large: str) -> dict[str, Any]:
    missing = [name for name in (first, large) if name not in state]
    if missing:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of LKU-Net: {missing[0]} is missing; its first are {entries}.")
    kernel, dims = state[large].shape[-1], state[first].ndim - 2
    return {
        "spatial_dims": dims,
        "start_channels": state[first].shape[0],
        # As configurations have it.
        "kernel_size": None if kernel == KERNEL_SIZES.get(dims) else kernel,
    }


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry, in the official order."""
    full = {**arguments, "half_res": False}
    shapes, places = FAMILY.shapes(full), key_map(full)
    for name in _official_names():
        # Both heads are alike.
        place = find_place("dc9.0.weight" if name == UNUSED else name, places)
        assert place is not None
        yield name, shapes[place]


def _official_names() -> Iterator[str]:
    layer, slope = ("0.weight", "0.bias", "1.weight"), "layer_nonlinearity.weight"
    branches = [f"layer_{branch}.0.{p}" for branch in _BRANCHES for p in ("weight", "bias")]
    yield from (f"eninput.{p}" for p in layer)
    yield from (f"ec1.{p}" for p in layer)
    for level in range(_LEVELS):
        yield from (f"ec{2 * level + 2}.{p}" for p in layer)
        yield from (f"ec{2 * level + 3}.{p}" for p in (*branches, slope))
    yield from (f"dc{index}.{p}" for index in range(1, 2 * _LEVELS + 1) for p in layer)
    yield from ("dc9.0.weight", UNUSED)
    yield from (f"up{step}.{p}" for step in range(1, _LEVELS + 1) for p in layer)


FAMILY = Family(
    network=LKUNet,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    untold=("int_steps",),
    tied=("half_res",),
    container=None,
)

# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints of GradICON and uniGradICON: a tree of two-step registrations under the names of our stages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.networks.gradicon import GradICON
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place

# Of a U-Net: official name -> ours; levels count from the finest in both.
_PARTS = {
    r"downConvs\.(\d+)\.": r"down.\1.",
    r"upConvs\.(\d+)\.": r"up.\1.",
    r"batchNorms\.(\d+)\.": r"norms.\1.",
    r"lastConv\.": "last.",
}
_LAST = "lastConv.weight"
# Grids of identity, and the voxel sizes beside them, in files of older code.
_CONSTANT = re.compile(r"(^|\.)(identity_map|spacing)$")


def prefixes(halvings: Sequence[int]) -> list[str]:
    """Where each U-Net lies in the official tree, in the order in which they run.

    A two-step registration has the steps ``netPhi``, all that comes before, and ``netPsi``, the U-Net; ``net`` is what
    a halving, and a U-Net as a function, is wrapped around.

    Args:
        halvings: of the network.
    """
    found: list[str] = []
    way = ""
    for before, here in reversed([*pairwise(halvings)]):
        found.insert(0, f"{way}netPsi.net.")
        way += "netPhi." + "net." * (before - here)
    return [f"{way}net.", *found]


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments."""
    places: dict[str, str | None] = {_CONSTANT.pattern: None}
    for stage, prefix in enumerate(prefixes(arguments["halvings"])):
        for part, ours in _PARTS.items():
            places[f"^{re.escape(prefix)}{part}"] = f"stages.{stage}.{ours}"
    return places


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read the order of the U-Nets, their widths and the number of axes off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a network of GradICON, or a variant.
    """
    if variant is not None:
        raise InputError(f"There is one network of GradICON and no variant {variant}; leave --variant out.")
    ends = [name.removesuffix(_LAST) for name in state if name.endswith(f".{_LAST}")]
    halvings = _halvings(max(ends, key=len, default=""))
    if halvings is None or sorted(prefixes(halvings)) != sorted(ends):
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of GradICON, whose U-Nets end in {_LAST}; its first are {entries}.")
    first = prefixes(halvings)[0]
    return _description(state, halvings, f"{first}downConvs", f"{first}batchNorms")


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell which grid a U-Net works on.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network, "halvings" among them.

    Raises:
        InputError: not a network of GradICON, or one with another number of U-Nets than the bundle's.
    """
    stages = len({name.split(".")[1] for name in state if name.startswith("stages.")})
    halvings = list(configured["halvings"])
    if stages != len(halvings) or "stages.0.down.0.weight" not in state:
        raise InputError(
            f"These are no weights of GradICON with {len(halvings)} U-Nets: {stages} are in them; name the halvings "
            "that they are for (--network_def#halvings)."
        )
    return _description(state, halvings, "stages.0.down", "stages.0.norms")


def _halvings(prefix: str) -> list[int] | None:
    """From the place of the U-Net that runs first; None where there is no such place."""
    if not re.fullmatch(r"(netPhi\.(net\.)?)*net\.", prefix):
        return None
    halvings = [0]
    for step in prefix.removesuffix("net.").split("netPhi.")[1:]:
        halvings.insert(0, halvings[0] + step.count("net."))
    return halvings


def _description(state: Mapping[str, Tensor], halvings: list[int], down: str, norms: str) -> Description:
    widths: dict[str, list[int]] = {down: [], norms: []}
    for part, found in widths.items():
        while f"{part}.{len(found)}.bias" in state:
            found.append(state[f"{part}.{len(found)}.bias"].shape[0])
    return Description(
        {
            "spatial_dims": state[f"{down}.0.weight"].ndim - 2,
            "channels": widths[down],
            "up_channels": widths[norms],
            "halvings": halvings,
        }
    )


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry, in the official order."""
    shapes, places = FAMILY.shapes(arguments), key_map(arguments)
    for name in _official_names(arguments):
        place = find_place(name, places)
        assert place is not None
        yield name, shapes[place]


def _official_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    depth, layer = range(len(arguments["channels"])), ("weight", "bias")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for prefix in prefixes(arguments["halvings"]):
        yield from (f"{prefix}{part}.{i}.{p}" for part in ("downConvs", "upConvs") for i in depth for p in layer)
        yield from (f"{prefix}batchNorms.{i}.{p}" for i in depth for p in (*layer, *statistics))
        yield from (f"{prefix}lastConv.{p}" for p in layer)


FAMILY = Family(
    network=GradICON,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=lambda name: _CONSTANT.search(name) is not None,
    container=None,
)

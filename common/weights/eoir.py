# SPDX-License-Identifier: Apache-2.0
"""EOIR's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.networks.eoir import EOIR, LEVELS
from common.spatial import identity_grid
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place

# Official name -> ours; None drops the entry (constant grids, and the estimator that the OASIS network never calls).
KEY_MAP: KeyMap = {
    r"^(transformers|integrates)\..*grid$": None,
    r"^simple_encoder\.(\d)\.layer\.(regular|large)\.0\.": r"encoder.\1.\2.",
    r"^simple_encoder\.(\d)\.layer\.one\.0\.": r"encoder.\1.point.",
    r"^simple_encoder\.(\d)\.layer\.(prelu|2)\.weight$": r"encoder.\1.activation.weight",
    r"^simple_encoder\.(\d)\.layer\.0\.": r"encoder.\1.conv.",
    r"^disp_warp_(\d)\.disp_field_fea\.0\.layer\.(regular|large)\.0\.": r"estimators.\1.mix.\2.",
    r"^disp_warp_(\d)\.disp_field_fea\.0\.layer\.one\.0\.": r"estimators.\1.mix.point.",
    r"^disp_warp_(\d)\.disp_field_fea\.0\.layer\.(prelu|2)\.weight$": r"estimators.\1.mix.activation.weight",
    r"^disp_warp_(\d)\.disp_field_fea\.0\.layer\.0\.": r"estimators.\1.mix.conv.",
    r"^disp_warp_(\d)\.disp_field_fea\.0\.": r"estimators.\1.mix.",
    r"^disp_warp_(\d)\.disp_field_fea\.[12]\.": r"estimators.\1.reduce.",
    r"^disp_warp_(\d)\.get_flow\.": r"estimators.\1.flow.",
}
OASIS_KEY_MAP: KeyMap = {r"^disp_warp_4\.": None, **KEY_MAP}
# The estimator that the published OASIS network holds and never calls.
UNUSED = "disp_warp_4."
_GRID = re.compile(r"^(transformers\.\d+|integrates\.\d+\.transformer)\.grid$")
_WIDTH, _HIDDEN = "simple_encoder.0.layer.0.weight", "disp_warp_0.get_flow.weight"
_LARGE = "simple_encoder.2.layer.large.0.weight"


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read variant, width and training size off an official state dict.

    Args:
        state: official name to tensor, with or without identity grids.
        variant: what the user says; needed where the grids are absent that tell "plain" from "acdc".

    Raises:
        InputError: not an EOIR network, or a variant that is unknown or contradicts the user.
    """
    if _WIDTH not in state or _HIDDEN not in state:
        raise InputError(
            f"This is no checkpoint of EOIR: {_WIDTH} or {_HIDDEN} is missing; its first entries are "
            f"{', '.join(list(state)[:3])}."
        )
    size = _size(state)
    if any(key.startswith("simple_encoder.3.") for key in state):
        seen: str | None = "oasis"
    else:
        seen = None if size is None else _plain_or_acdc(state)
    if seen is None and variant not in ("plain", "acdc"):
        raise InputError(
            "This checkpoint holds no identity grids, which alone tell the plain network (LUMIR, abdomen CT) from that "
            "for ACDC; say which it is with --variant plain or --variant acdc."
        )
    if seen is not None and variant not in (None, seen):
        raise InputError(f"This is a checkpoint of the {seen} network, not of the {variant} one; leave --variant out.")
    return _description(seen or str(variant), state, _WIDTH, _HIDDEN, _LARGE, size)


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell "plain" from "acdc".

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network, "variant" among them.

    Raises:
        InputError: not an EOIR network.
    """
    width, hidden, large = "encoder.0.conv.weight", "estimators.0.flow.weight", "encoder.2.large.weight"
    if width not in state or hidden not in state:
        raise InputError(f"These are no weights of EOIR under this project's names: {width} or {hidden} is missing.")
    return _description(configured["variant"], state, width, hidden, large)


def _description(
    variant: str, state: Mapping[str, Tensor], width: str, hidden: str, large: str, size: tuple[int, ...] | None = None
) -> Description:
    arguments = {
        "variant": variant,
        "start_channel": state[width].shape[0],
        "search_radius": _radius(state[hidden]),
    }
    if variant == "oasis":
        arguments["kernel_size"] = state[large].shape[-1] if large in state else 3
    return Description(arguments, size)


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry but the grids, in the official order."""
    shapes = FAMILY.shapes(arguments)
    for name in _official_names(arguments):
        # All estimators have the same shapes, the unused one as well.
        place = find_place(name.replace(UNUSED, "disp_warp_0."), key_map(arguments))
        assert place is not None
        yield name, shapes[place]


def _official_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    oasis = arguments["variant"] == "oasis"
    parameters = ("weight", "bias")
    plain = [f"layer.0.{p}" for p in parameters] + ["layer.2.weight"]
    chosen = plain
    if oasis and arguments["kernel_size"] != 3:
        chosen = [f"layer.{branch}.0.{p}" for branch in ("regular", "large", "one") for p in parameters]
        chosen.append("layer.prelu.weight")
    for i in range(4 if oasis else 3):
        yield from (f"simple_encoder.{i}.{name}" for name in (chosen if oasis and i == 2 else plain))
    mix = [f"0.{name}" for name in chosen] if oasis else [f"0.{p}" for p in parameters]
    reduce = 1 if oasis else 2
    for level in reversed(range(LEVELS)):
        yield from (f"disp_warp_{level}.disp_field_fea.{name}" for name in mix)
        yield from (f"disp_warp_{level}.disp_field_fea.{reduce}.{p}" for p in parameters)
        yield from (f"disp_warp_{level}.get_flow.{p}" for p in parameters)


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments."""
    return OASIS_KEY_MAP if arguments["variant"] == "oasis" else KEY_MAP


def grids(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Identity grids (1, 3, d, h, w) of the official samplers, voxel indices.

    Args:
        arguments: of the network.
        size: three axes that the official network is to be built for: multiples of 16 from 32 on (any third axis for
            "acdc").

    Raises:
        InputError: for another size.
    """
    in_plane = arguments["variant"] == "acdc"
    if len(size) != 3 or min(size) < 1 or any(n % 16 or n < 32 for n in (size[:2] if in_plane else size)):
        raise InputError(f"The published network cannot be built for {list(size)}: axes are multiples of 16 from 32.")

    def grid(level: int) -> Tensor:
        resampled = 2 if in_plane else 3
        return identity_grid([n >> level if axis < resampled else n for axis, n in enumerate(size)]).clone()

    samplers = range(LEVELS + 1 if arguments["variant"] == "oasis" else LEVELS)
    return {f"transformers.{level}.grid": grid(level) for level in samplers} | {
        f"integrates.{level}.transformer.grid": grid(level) for level in range(LEVELS)
    }


def _size(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    grid = state.get("transformers.0.grid")
    if grid is None:
        return None
    if grid.ndim != 5 or grid.shape[:2] != (1, 3):
        raise InputError(f"transformers.0.grid is {tuple(grid.shape)}; expected (1, 3, d, h, w) as in EOIR.")
    return tuple(grid.shape[2:])


def _plain_or_acdc(state: Mapping[str, Tensor]) -> str | None:
    first, second = state["transformers.0.grid"], state.get("transformers.1.grid")
    if second is None:
        return None
    return "acdc" if first.shape[-1] == second.shape[-1] else "plain"


def _radius(flow: Tensor) -> int:
    hidden = flow.shape[1]
    radius = round((hidden ** (1 / 3) - 1) / 2)
    if (2 * radius + 1) ** 3 != hidden:
        raise InputError(f"The estimators have {hidden} hidden channels; EOIR has the cube of an odd number.")
    return radius


FAMILY = Family(
    network=EOIR,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=lambda name: _GRID.match(name) is not None,
    constants=grids,
    kinds=("variant",),
    untold=("int_steps",),
    variants=("plain", "acdc", "oasis"),
)

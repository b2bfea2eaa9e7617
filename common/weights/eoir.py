# SPDX-License-Identifier: Apache-2.0
"""EOIR's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from common.checks import InputError
from common.networks.eoir import EOIR, LEVELS, Variant
from common.spatial import identity_grid
from common.weights.state_dicts import differing_keys, rename_keys

# Official name -> ours; None drops the entry (constant grids, and the estimator that the OASIS network never calls).
KEY_MAP: dict[str, str | None] = {
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
OASIS_KEY_MAP: dict[str, str | None] = {r"^disp_warp_4\.": None, **KEY_MAP}
# The estimator that the published OASIS network holds and never calls.
UNUSED = "disp_warp_4."
_GRID = re.compile(r"^(transformers\.\d+|integrates\.\d+\.transformer)\.grid$")
_WIDTH, _HIDDEN = "simple_encoder.0.layer.0.weight", "disp_warp_0.get_flow.weight"
_LARGE = "simple_encoder.2.layer.large.0.weight"
_LISTED = 8


@dataclass(frozen=True)
class EOIRWeights:
    """What a state dict says of its network.

    Attributes:
        variant: "plain", "acdc" or "oasis".
        start_channel: N.
        search_radius: r of the (2 r + 1) ** 3 hidden channels.
        kernel_size: large kernel of the "oasis" variant, 3 where its blocks are plain; None for the other variants.
        size: spatial size of the training images, which the identity grids of an official checkpoint show; None
            without grids.
    """

    variant: Variant
    start_channel: int
    search_radius: int
    kernel_size: int | None = None
    size: tuple[int, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments of :class:`common.networks.EOIR`; integration leaves no trace in the weights."""
        found = {name: getattr(self, name) for name in ("variant", "start_channel", "search_radius", "kernel_size")}
        return {name: value for name, value in found.items() if value is not None}


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> EOIRWeights:
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
    kernel = None
    if seen == "oasis":
        kernel = state[_LARGE].shape[-1] if _LARGE in state else 3
    return EOIRWeights(cast(Variant, seen or variant), state[_WIDTH].shape[0], _radius(state[_HIDDEN]), kernel, size)


def describe_ours(state: Mapping[str, Tensor], variant: str) -> EOIRWeights:
    """The same of a state dict under our names, which does not tell "plain" from "acdc".

    Args:
        state: what ``models/model.pt`` holds.
        variant: of the network.

    Raises:
        InputError: not an EOIR network.
    """
    width, hidden, large = "encoder.0.conv.weight", "estimators.0.flow.weight", "encoder.2.large.weight"
    if width not in state or hidden not in state:
        raise InputError(f"These are no weights of EOIR under this project's names: {width} or {hidden} is missing.")
    kernel = None
    if variant == "oasis":
        kernel = state[large].shape[-1] if large in state else 3
    return EOIRWeights(cast(Variant, variant), state[width].shape[0], _radius(state[hidden]), kernel)


def to_ours(state: Mapping[str, Tensor], weights: EOIRWeights) -> dict[str, Tensor]:
    """Official entries under our names, in the order of our network.

    Identity grids, which our networks make themselves, and the estimator that the OASIS network never calls are left
    out.

    Args:
        state: official name to tensor.
        weights: what :func:`describe_official` found.

    Returns:
        Our name to float32 tensor.

    Raises:
        InputError: with the list of differing keys, or when a value is NaN or infinite.
    """
    entries = {key: value for key, value in state.items() if not _GRID.match(key)}
    names = {name: shape for name, _, shape in official_entries(weights)}
    if not any(key.startswith(UNUSED) for key in entries) and weights.variant == "oasis":
        names = {name: shape for name, shape in names.items() if not name.startswith(UNUSED)}
    _refuse(differing_keys(entries, names), weights)
    broken = next((key for key, value in entries.items() if not bool(torch.isfinite(value).all())), None)
    if broken is not None:
        raise InputError(f"The entry {broken} has NaN or infinite values; the checkpoint is damaged, copy it anew.")
    renamed = rename_keys(entries, _key_map(weights))
    return {name: renamed[name].detach().float().contiguous() for name in _shapes(weights)}


def to_official(state: Mapping[str, Tensor], weights: EOIRWeights, size: Sequence[int]) -> dict[str, Tensor]:
    """Our entries under the official names and in the official order, with the identity grids of a given size.

    The estimator that the OASIS network never calls comes back as zeros.

    Args:
        state: our name to tensor.
        weights: what :func:`describe_ours` found.
        size: three axes that the official network is to be built for: multiples of 16 from 32 on (any third axis for
            "acdc").

    Returns:
        Official name to float32 tensor.

    Raises:
        InputError: with the list of differing keys, or for a size that the official network cannot take.
    """
    _refuse(differing_keys(state, _shapes(weights)), weights)
    resampled = size[:2] if weights.variant == "acdc" else size
    if len(size) != 3 or min(size) < 1 or any(n % 16 or n < 32 for n in resampled):
        raise InputError(f"The published network cannot be built for {list(size)}: axes are multiples of 16 from 32.")
    official = {
        name: torch.zeros(shape) if ours is None else state[ours].detach().float().contiguous()
        for name, ours, shape in official_entries(weights)
    }
    return official | dict(_grids(weights.variant, size))


def official_entries(weights: EOIRWeights) -> list[tuple[str, str | None, tuple[int, ...]]]:
    """(official name, our name, shape) of every entry but the grids, in the official order."""
    shapes = _shapes(weights)
    entries: list[tuple[str, str | None, tuple[int, ...]]] = []
    for name in _official_names(weights):
        ours = next(iter(rename_keys({name: None}, _key_map(weights))), None)
        # All estimators have the same shapes, the unused one as well.
        twin = ours or next(iter(rename_keys({name.replace(UNUSED, "disp_warp_0."): None}, _key_map(weights))))
        entries.append((name, ours, shapes[twin]))
    return entries


def _official_names(weights: EOIRWeights) -> Iterator[str]:
    oasis = weights.variant == "oasis"
    parameters = ("weight", "bias")
    plain = [f"layer.0.{p}" for p in parameters] + ["layer.2.weight"]
    chosen = plain
    if oasis and weights.kernel_size != 3:
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


def _shapes(weights: EOIRWeights) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = EOIR(**weights.arguments())
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _key_map(weights: EOIRWeights) -> dict[str, str | None]:
    return OASIS_KEY_MAP if weights.variant == "oasis" else KEY_MAP


def _grids(variant: str, size: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """Identity grids (1, 3, d, h, w) of the official samplers, voxel indices."""

    def grid(level: int) -> Tensor:
        resampled = 2 if variant == "acdc" else 3
        return identity_grid([n >> level if axis < resampled else n for axis, n in enumerate(size)]).clone()

    for level in range(LEVELS + 1 if variant == "oasis" else LEVELS):
        yield f"transformers.{level}.grid", grid(level)
    for level in range(LEVELS):
        yield f"integrates.{level}.transformer.grid", grid(level)


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


def _refuse(differing: Sequence[str], weights: EOIRWeights) -> None:
    if differing:
        more = f"; and {len(differing) - _LISTED} more" if len(differing) > _LISTED else ""
        raise InputError(
            f"The weights do not fit the {weights.variant} network with {weights.start_channel} start channels: "
            f"{'; '.join(differing[:_LISTED])}{more}."
        )

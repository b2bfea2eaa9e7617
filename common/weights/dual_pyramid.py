# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the published dual-pyramid code: what they tell of the network, and their entries under our names.

No checkpoint is public; these are the names that its training writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.blocks.vector_field_attention import unit_offsets
from common.checks import InputError
from common.networks.dual_pyramid import KNOWN, VARIANTS, DualPyramid, fed_channels, hidden_channels
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap

_ENCODER, _ONE_WAY = "feature_encoder.encoder", "deformation_decoder.decoder.dp_blocks"
_SYMMETRIC = "deformation_decoder._not_none_dense_extration_networks"
# Official part of a residual block -> ours.
_RESIDUAL = {
    ".main_branch.0.0": ".first",
    ".main_branch.0.1": ".first_norm",
    ".main_branch.1.0": ".second",
    ".main_branch.1.1": ".second_norm",
    ".skip_conv": ".skip",
    ".skip_norm": ".skip_norm",
}
# Blocks of other kinds have the official names.
_VARIED = {"": ""}
_ATTENTION = {".proj": ".project"}
_PARAMETERS = ("weight", "bias")
# The offsets that attention looks at, and buffers of coordinate systems, which hold nothing.
_CONSTANT = re.compile(r"\.R$|\._indicator$")
_RADII = range(1, 5)


def _modules(arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(official, our) name of every layer, in the official order."""
    variant, levels = KNOWN[arguments["variant"]], len(arguments["channels"])
    encoder, decoder = (_VARIED if arguments.get(name) else _RESIDUAL for name in ("encoder_block", "decoder_block"))
    yield f"{_ENCODER}.projection", "encoder.projection"
    for level in range(levels):
        block = f"{_ENCODER}.blocks.{level - 1}" if level else f"{_ENCODER}.block0"
        yield from ((f"{block}{official}", f"encoder.blocks.{level}{ours}") for official, ours in encoder.items())
    flow = {f".res_block{official}": f".residual{ours}" for official, ours in decoder.items()} | {
        ".out_block.0": ".flow"
    }
    for index in range(levels):
        # Symmetric networks count from the finest level, the others from the coarsest.
        level = index if variant.symmetric else levels - 1 - index
        block = f"{_SYMMETRIC if variant.symmetric else _ONE_WAY}.{index}"
        parts = flow if variant.fed else _ATTENTION
        yield from ((f"{block}{official}", f"decoder.{level}{ours}") for official, ours in parts.items())


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments."""
    return {rf"^{re.escape(official)}\.": f"{ours}." for official, ours in _modules(arguments)}


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read variant, widths and number of axes off an official state dict.

    Args:
        state: official name to tensor.
        variant: what the user says, which is not needed.

    Raises:
        InputError: not a dual-pyramid network, or of another variant than the user says.
    """
    # Which layers there are does not depend on what they are fed.
    symmetric = any(name.startswith(_SYMMETRIC) for name in state)
    like = "convic_c" if symmetric else "vfa" if f"{_ONE_WAY}.0.proj.weight" in state else "conv_c"
    levels = sum(name.startswith(_ENCODER) and name.endswith(".skip_conv.bias") for name in state)
    places = dict(_modules({"variant": like, "channels": range(levels)}))
    layers = [(name, *name.rpartition(".")) for name in state]
    ours = {f"{places[layer]}.{parameter}": state[name] for name, layer, _, parameter in layers if layer in places}
    found = _description(ours, symmetric, ", ".join(list(state)[:3]))
    if variant not in (None, found.arguments["variant"]):
        raise InputError(
            f"This is a checkpoint of the {found.arguments['variant']} network, not of the {variant} one; leave "
            "--variant out."
        )
    return found


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell networks of one direction from symmetric ones.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network, "variant" among them.

    Raises:
        InputError: not a dual-pyramid network.
    """
    return _description(state, KNOWN[configured["variant"]].symmetric, ", ".join(list(state)[:3]))


def _description(ours: Mapping[str, Tensor], symmetric: bool, first: str) -> Description:
    def shape(name: str) -> torch.Size:
        if name not in ours:
            raise InputError(f"This is no checkpoint of a dual-pyramid network: its first entries are {first}.")
        return ours[name].shape

    dims, channels = len(shape("encoder.projection.weight")) - 2, [shape("encoder.blocks.0.skip.bias")[0]]
    while f"encoder.blocks.{len(channels)}.skip.bias" in ours:
        channels.append(shape(f"encoder.blocks.{len(channels)}.skip.bias")[0])
    attends = "decoder.0.project.weight" in ours
    layers = [f"decoder.{level}.{'project' if attends else 'residual.skip'}.weight" for level in range(len(channels))]
    hidden, fed = [shape(layer)[0] for layer in layers], [shape(layer)[1] for layer in layers]
    kind = {"variant": "vfa"} if attends else _fed(fed, dims, channels, symmetric)
    published = hidden_channels(kind["variant"], channels)
    return Description(
        {
            "spatial_dims": dims,
            **kind,
            "channels": channels,
            "decoder_channels": None if hidden == published else hidden,
        }
    )


def _fed(fed: Sequence[int], dims: int, channels: Sequence[int], symmetric: bool) -> dict[str, Any]:
    """The variant, and the radius where it has one, by what its blocks take."""
    for variant, (names, is_symmetric) in VARIANTS.items():
        for radius in _RADII:
            if (
                names
                and is_symmetric == symmetric
                and fed == [fed_channels(variant, dims, n, radius) for n in channels]
            ):
                return {"variant": variant, **({"radius": radius} if "correlation" in names else {})}
    raise InputError(
        f"The decoder's blocks take {fed} channels and features have {list(channels)}: no dual-pyramid network does so."
    )


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    for official, ours in _modules(arguments):
        yield from ((f"{official}.{parameter}", shapes[f"{ours}.{parameter}"]) for parameter in _PARAMETERS)


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """The offsets of attention, and the empty buffers of coordinate systems.

    Args:
        arguments: of the network.
        size: of the images, of which nothing depends.
    """
    variant, levels = KNOWN[arguments["variant"]], range(len(arguments["channels"]))
    if not variant.fed:
        offsets = unit_offsets(arguments["spatial_dims"], torch.empty(0))
        return {f"{_ONE_WAY}.{level}.R": offsets.clone() for level in levels}
    if not variant.symmetric:
        return {}
    systems = [f"_feature_coordinate_systems.{level}" for level in levels]
    systems += ["_transformation_coordinate_system", "_image_coordinate_system"]
    kinds = ("_feature", "_transformation")
    blocks = [f"{_SYMMETRIC}.{level}.{kind}_coordinate_system" for level in levels for kind in kinds]
    return {
        f"{system}._indicator": torch.empty(0)
        for system in [*(f"deformation_decoder.{name}" for name in systems), *blocks]
    }


FAMILY = Family(
    network=DualPyramid,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=lambda name: _CONSTANT.search(name) is not None,
    constants=constants,
    kinds=("variant",),
    untold=("padding_mode", "attention", "solver"),
    variants=tuple(VARIANTS),
    container="state_dict",
)

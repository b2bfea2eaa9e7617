# SPDX-License-Identifier: Apache-2.0
"""TransMorphTVF's published checkpoints, of OASIS and of LUMIR: what they tell, and their entries here and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from common.networks.transmorph_tvf import TransMorphTVF
from common.spatial import identity_grid
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap
from common.weights.swin_unet import (
    OFFICIAL,
    OURS,
    Entries,
    check_no_variant,
    count,
    describe_unet,
    indices,
    is_constant,
    renamed,
    size_of,
    unet_entries,
    unet_map,
    window_of,
)

_OFFICIAL_STEP, _OUR_STEP = "reg_heads.{}.0.weight", "steps.{}.head.conv.weight"


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of the network with these arguments."""
    return {
        **unet_map(arguments),
        r"^c1\.0\.": "unet.of_images.0.conv.",
        r"^c1\.1\.": "unet.of_images.0.norm.",
        r"^cs\.(\d+)\.0\.": r"steps.\1.of_images.conv.",
        r"^cs\.(\d+)\.1\.": r"steps.\1.of_images.norm.",
        r"^up3s\.(\d+)\.conv1\.0\.": r"steps.\1.first.conv.",
        r"^up3s\.(\d+)\.conv2\.0\.": r"steps.\1.second.conv.",
        r"^reg_heads\.(\d+)\.0\.": r"steps.\1.head.conv.",
        # LUMIR's network holds a head that it does not use.
        r"^reg_head\.0\.": None,
    }


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depths, steps and the variant off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none to be stated.

    Raises:
        InputError: not a TransMorphTVF network, a variant, or indices that do not belong to windows.
    """
    check_no_variant("TransMorphTVF", variant)
    described = _description(state, OFFICIAL, _OFFICIAL_STEP, "c1.0.weight")
    return Description(described | window_of(state), size_of(state))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorphTVF network.
    """
    described = _description(state, OURS, _OUR_STEP, "unet.of_images.0.conv.weight")
    return Description({**configured, **described})


def _description(state: Mapping[str, Tensor], names: Mapping[str, str], step: str, of_images: str) -> dict[str, Any]:
    return {
        **describe_unet(state, names, [step.format(0)], "TransMorphTVF"),
        "variant": "lumir" if of_images in state else "oasis",
        "head_channels": state[step.format(0)].shape[1],
        "time_steps": count(state, step.format),
    }


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Indices and, of LUMIR's network, coordinates of the official layout, for images of a size."""
    if arguments["variant"] == "oasis":
        return indices(arguments)
    grids = {"spatial_trans": identity_grid(size), "spatial_trans_": identity_grid([n // 2 for n in size])}
    return {**indices(arguments), **{f"{name}.grid": grid for name, grid in grids.items()}}


def official_entries(arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    yield from unet_entries(shapes, arguments)
    yield from renamed(shapes, "unet.of_images.0.conv.", "c1.0.")
    yield from renamed(shapes, "unet.of_images.0.norm.", "c1.1.")
    steps = range(arguments["time_steps"])
    for i in steps:
        yield from renamed(shapes, f"steps.{i}.head.conv.", f"reg_heads.{i}.0.")
    for i in steps:
        yield from renamed(shapes, f"steps.{i}.first.conv.", f"up3s.{i}.conv1.0.")
        yield from renamed(shapes, f"steps.{i}.second.conv.", f"up3s.{i}.conv2.0.")
    for i in steps:
        yield from renamed(shapes, f"steps.{i}.of_images.conv.", f"cs.{i}.0.")
        yield from renamed(shapes, f"steps.{i}.of_images.norm.", f"cs.{i}.1.")
    if arguments["variant"] == "lumir":
        yield from renamed(shapes, "steps.0.head.conv.", "reg_head.0.")


FAMILY = Family(
    network=TransMorphTVF,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=is_constant,
    constants=constants,
    kinds=("variant",),
    untold=("int_steps", "drop_path"),
    tied=("window",),
    container="state_dict",
)

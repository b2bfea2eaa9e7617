# SPDX-License-Identifier: Apache-2.0
"""TransMorph's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from common.networks.transmorph import TransMorph
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


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of the network with these arguments."""
    full, conv_skip = arguments["output_resolution"] == "full", arguments["conv_skip"]
    return {
        **unet_map(arguments),
        r"^c1\.0\.": "unet.of_images.0.conv." if conv_skip else None,
        r"^c2\.0\.": "unet.of_images.1.conv." if conv_skip and full else None,
        r"^reg_head\.0\.": "head.conv.",
    }


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depths and the form of the network off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a TransMorph network, a variant, or indices that do not belong to windows.
    """
    check_no_variant("TransMorph", variant)
    return Description(_description(state, OFFICIAL, "reg_head.0.weight") | window_of(state), size_of(state))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorph network.
    """
    return Description({**configured, **_description(state, OURS, "head.conv.weight")})


def _description(state: Mapping[str, Tensor], names: Mapping[str, str], head: str) -> dict[str, Any]:
    described = describe_unet(state, names, [head], "TransMorph")
    ups = [state[names["up"].format(k)] for k in range(count(state, names["up"].format))]
    full = len(ups) > len(described["depths"])
    inputs = [described["embed_dim"] * 2 ** (len(described["depths"]) - 1), *(up.shape[0] for up in ups)]
    return {
        **described,
        "output_resolution": "full" if full else "half",
        "align_corners": full,
        "head_channels": state[head].shape[1],
        "qkv_bias": f"{names['block'].format(0, 0)}.attn.qkv.bias" in state,
        "conv_skip": ups[-1].shape[1] > inputs[-2],
        "trans_skip": ups[0].shape[1] > inputs[0],
    }


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Coordinates and indices of the official layout, for images of a size."""
    return {**indices(arguments), "spatial_trans.grid": identity_grid(size)}


def official_entries(arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    yield from unet_entries(shapes, arguments)
    for n, channels in ((1, arguments["embed_dim"] // 2), (2, arguments["head_channels"])):
        yield f"c{n}.0.weight", (channels, 2, *[3] * arguments["spatial_dims"])
    yield from renamed(shapes, "head.conv.", "reg_head.0.")


FAMILY = Family(
    network=TransMorph,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=is_constant,
    constants=constants,
    kinds=("output_resolution",),
    untold=("drop_path",),
    container="state_dict",
)

# SPDX-License-Identifier: Apache-2.0
"""TransMorph's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.io.checkpoints import load_checkpoint
from common.networks.transmorph import TransMorph
from common.spatial import identity_grid
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, unpack_state_dict
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

CONTAINER = "state_dict"
# TransMorph-Bayes holds the network as a part, and beside it the head that counts.
BAYES = "net."
PUBLISHED_DROPOUT = 0.15


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of the network with these arguments."""
    full, conv_skip = arguments["output_resolution"] == "full", arguments["conv_skip"]
    unet: KeyMap = {
        **unet_map(arguments),
        r"^c1\.0\.": "unet.of_images.0.conv." if conv_skip else None,
        r"^c2\.0\.": "unet.of_images.1.conv." if conv_skip and full else None,
    }
    head: KeyMap = {r"^reg_head\.0\.": "head.conv."}
    if not arguments.get("dropout"):
        return {**unet, **head}
    part = {pattern.replace("^", rf"^{re.escape(BAYES)}"): place for pattern, place in unet.items()}
    return {**part, rf"^{re.escape(BAYES)}(reg|sigma)_head\.": None, **head}


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Official entries of a file, also of mmipt's and DilateMorph's, where the head is no part of the backbone.

    Args:
        path: checkpoint.

    Raises:
        InputError: the file is missing, damaged or holds no state dict.
    """
    state = unpack_state_dict(load_checkpoint(path), str(path), CONTAINER)
    names = {name: re.sub(r"^flow\.conv\.", "reg_head.0.", name.removeprefix("backbone.")) for name in state}
    return {names[name]: value for name, value in state.items()}, {}


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depths and the form of the network off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a TransMorph network but, for instance, TransMorphTVF; a variant; or indices that do not belong
            to windows.
    """
    check_no_variant("TransMorph", variant)
    if "reg_heads.0.0.weight" in state:
        raise InputError(
            "This is a checkpoint of TransMorphTVF: it has a head for each step; import it into its bundle."
        )
    part = {name.removeprefix(BAYES): value for name, value in state.items() if name.startswith(BAYES)}
    state = {**part, **state}
    described = _description(state, OFFICIAL, "reg_head.0.weight") | window_of(state)
    return Description(described | ({"dropout": PUBLISHED_DROPOUT} if part else {}), size_of(state))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorph network.
    """
    # Where the warp samples, only the published form of the network tells.
    told = {"align_corners": configured["align_corners"]} if "align_corners" in configured else {}
    return Description({**configured, **_description(state, OURS, "head.conv.weight"), **told})


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
    part = BAYES if arguments.get("dropout") else ""
    return {
        **{part + name: index for name, index in indices(arguments).items()},
        "spatial_trans.grid": identity_grid(size),
    }


def official_entries(arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes, bayes = FAMILY.shapes(arguments), bool(arguments.get("dropout"))
    part, dims, channels = BAYES if bayes else "", arguments["spatial_dims"], arguments["head_channels"]
    for name, shape in unet_entries(shapes, arguments):
        yield part + name, shape
    for n, width in ((1, arguments["embed_dim"] // 2), (2, channels)):
        yield f"{part}c{n}.0.weight", (width, 2, *[3] * dims)
    unused = (("reg_head", dims), ("sigma_head", 1)) if bayes else ()
    for head, width in unused:
        yield f"{part}{head}.0.weight", (width, channels, *[3] * dims)
        yield f"{part}{head}.0.bias", (width,)
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
    untold=("drop_path", "dropout", "samples"),
    tied=("window",),
    container=CONTAINER,
    read=read,
)

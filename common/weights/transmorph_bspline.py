# SPDX-License-Identifier: Apache-2.0
"""TransMorph-bspl's published checkpoints: what they tell of the network, and their entries here and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.networks.transmorph_bspline import TransMorphBSpline
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

_OFFICIAL_LAYER, _OUR_LAYER = "resize_conv.{}.0.weight", "on_lattice.{}.weight"


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official name -> ours, of the network with these arguments."""
    return {
        **unet_map(arguments),
        r"^c1\.0\.": "unet.of_images.0.conv.",
        r"^resize_conv\.(\d+)\.0\.": r"on_lattice.\1.",
        r"^out_layer\.": "control.conv.",
    }


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths and depths off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a TransMorph-bspl network, a variant, or indices that do not belong to windows.
    """
    check_no_variant("TransMorph-bspl", variant)
    return Description(_description(state, OFFICIAL, _OFFICIAL_LAYER) | window_of(state), size_of(state))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorph-bspl network.
    """
    return Description({**configured, **_description(state, OURS, _OUR_LAYER)})


def _description(state: Mapping[str, Tensor], names: Mapping[str, str], layer: str) -> dict[str, Any]:
    described = describe_unet(state, names, [layer.format(0)], "TransMorph-bspl")
    layers = range(count(state, layer.format))
    return {**described, "lattice_channels": [state[layer.format(i)].shape[0] for i in layers]}


def official_entries(arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    yield from unet_entries(shapes, arguments)
    yield from renamed(shapes, "unet.of_images.0.conv.", "c1.0.")
    for i in range(len(arguments["lattice_channels"])):
        yield from renamed(shapes, f"on_lattice.{i}.", f"resize_conv.{i}.0.")
    yield from renamed(shapes, "control.conv.", "out_layer.")


FAMILY = Family(
    network=TransMorphBSpline,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=is_constant,
    constants=lambda arguments, size: indices(arguments),
    untold=("spacing", "int_steps", "drop_path"),
    tied=("window",),
    container="state_dict",
)

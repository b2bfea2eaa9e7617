# SPDX-License-Identifier: Apache-2.0
"""TransMorph-diff's published checkpoints: what they tell of the network, and their entries here and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from common.networks.transmorph_diff import TransMorphDiff
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
    return {
        **unet_map(arguments),
        r"^c1\.0\.": "unet.of_images.0.conv.",
        r"^c2\.0\.": "unet.of_images.1.conv.",
        r"^flow_mean\.": "head.conv.",
        r"^flow_sigma\.": "log_variance.conv.",
    }


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depths and resolution off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a TransMorph-diff network, a variant, or indices that do not belong to windows.
    """
    check_no_variant("TransMorph-diff", variant)
    return Description(_description(state, OFFICIAL, "flow_sigma.weight") | window_of(state), size_of(state))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a TransMorph-diff network.
    """
    return Description({**configured, **_description(state, OURS, "log_variance.conv.weight")})


def _description(state: Mapping[str, Tensor], names: Mapping[str, str], head: str) -> dict[str, Any]:
    described = describe_unet(state, names, [head], "TransMorph-diff")
    full = count(state, names["up"].format) > len(described["depths"])
    return {
        **described,
        "output_resolution": "full" if full else "half",
        "head_channels": state[head].shape[1],
    }


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Coordinates and indices of the official layout, for images of a size."""
    return {**indices(arguments), "spatial_trans.grid": identity_grid(size)}


def official_entries(arguments: Mapping[str, Any]) -> Entries:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    yield from unet_entries(shapes, arguments)
    yield from renamed(shapes, "unet.of_images.1.conv.", "c2.0.")
    yield from renamed(shapes, "unet.of_images.0.conv.", "c1.0.")
    yield from renamed(shapes, "head.conv.", "flow_mean.")
    yield from renamed(shapes, "log_variance.conv.", "flow_sigma.")


FAMILY = Family(
    network=TransMorphDiff,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=is_constant,
    constants=constants,
    kinds=("output_resolution",),
    untold=("int_steps", "samples", "drop_path"),
    tied=("window",),
    container="state_dict",
)

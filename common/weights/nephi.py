# SPDX-License-Identifier: Apache-2.0
"""NePhi's published checkpoints: encoder and two fields, each a state dict of its own, or the auto-decoder as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.networks.nephi import NePhi
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place, rename_keys

_FIELDS = {"phi": "field", "phi_inv": "inverse_field"}
_OF_FIELDS = {
    r"embed\.B$": "frequencies",
    r"(synthesis|modulation)_nw\.first_layer\.linear\.": r"\1.first.",
    r"(synthesis|modulation)_nw\.(?:hidden_)?layer_(\d+)\.linear\.": r"\1.hidden.\2.",
    r"synthesis_nw\.final_layer\.": "head.",
}
# Official name -> ours.
KEY_MAP: KeyMap = {
    r"^encoder\.local_encoder\.conv\.": "codes.local.conv.",
    r"^encoder\.local_encoder\.bn\.": "codes.local.norm.",
    r"^encoder\.feature_encoder\.(\d+)\.conv\.": r"codes.trunk.\1.conv.",
    r"^encoder\.feature_encoder\.(\d+)\.bn\.": r"codes.trunk.\1.norm.",
    r"^encoder\.global_encoder\.1\.fc\.": "codes.hidden.",
    r"^encoder\.global_encoder\.2\.fc\.": "codes.shared.",
    r"^latent_codes\.global_latent$": "codes.shared",
    r"^latent_codes\.local_latent$": "codes.local",
    **{
        rf"^{official}\.{pattern}": f"{ours}.{name}"
        for official, ours in _FIELDS.items()
        for pattern, name in _OF_FIELDS.items()
    },
}
_LAYER = ("weight", "bias")
_NORM = (*_LAYER, "running_mean", "running_var", "num_batches_tracked")


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read the widths of encoder and fields off an official state dict, whose names begin with the part they are of.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a NePhi network, or a variant.
    """
    if variant is not None:
        raise InputError(f"There is one network of NePhi and no variant {variant}; leave --variant out.")
    if "phi.embed.B" not in state:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of NePhi: phi.embed.B is missing; its first are {entries}.")
    return _description(rename_keys(state, KEY_MAP))


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell the size of the images.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a NePhi network.
    """
    if "field.frequencies" not in state:
        raise InputError("These are no weights of NePhi under this project's names: field.frequencies is missing.")
    found = _description(state).arguments
    return Description({**{name: configured[name] for name in FAMILY.tied}, **found})


def _description(ours: Mapping[str, Tensor]) -> Description:
    frequencies = ours["field.frequencies"]
    arguments: dict[str, Any] = {
        "spatial_dims": frequencies.shape[0],
        "hidden": len(ours["field.head.weight"].T),
        "layers": _count(ours, "field.synthesis.hidden.{}.weight"),
        "frequencies": frequencies.shape[1],
    }
    if "codes.shared" in ours:
        return Description({**arguments, "latent": ours["codes.shared"].shape[1], "pairs": len(ours["codes.shared"])})
    blocks = _count(ours, "codes.trunk.{}.conv.weight")
    channels = [len(ours[f"codes.trunk.{i}.conv.weight"]) for i in range(blocks)]
    local = ours.get("codes.local.conv.weight")
    if local is None or local.shape[1] not in channels:
        raise InputError("This checkpoint has two fields of NePhi, but neither its encoder nor a table of codes.")
    encoder = {"channels": channels, "local_level": channels.index(local.shape[1]), "latent": len(local)}
    return Description({**arguments, **encoder, "pairs": None})


def _count(ours: Mapping[str, Tensor], name: str) -> int:
    count = 0
    while name.format(count) in ours:
        count += 1
    return count


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry, in the official order."""
    shapes = FAMILY.shapes(arguments)
    for name in _official_names(arguments):
        place = find_place(name, KEY_MAP)
        assert place is not None
        yield name, shapes[place]


def _official_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    table = arguments["pairs"] is not None
    if not table:
        blocks = ["local_encoder", *(f"feature_encoder.{i}" for i in range(len(arguments["channels"])))]
        yield from (
            f"encoder.{block}.{part}.{name}"
            for block in blocks
            for part, names in (("conv", _LAYER), ("bn", _NORM))
            for name in names
        )
        yield from (f"encoder.global_encoder.{i}.fc.{name}" for i in (1, 2) for name in _LAYER)
    for field in _FIELDS:
        if table and field == "phi_inv":
            yield from ("latent_codes.global_latent", "latent_codes.local_latent")
        yield f"{field}.embed.B"
        layers = ["synthesis_nw.first_layer.linear"]
        layers += [f"synthesis_nw.hidden_layer_{i}.linear" for i in range(arguments["layers"])]
        layers += ["synthesis_nw.final_layer", "modulation_nw.first_layer.linear"]
        layers += [f"modulation_nw.layer_{i}.linear" for i in range(arguments["layers"])]
        yield from (f"{field}.{layer}.{name}" for layer in layers for name in _LAYER)


FAMILY = Family(
    network=NePhi,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=lambda arguments: KEY_MAP,
    entries=official_entries,
    tied=("size", "channels", "local_level"),
    container="net",
    parts=("encoder", *_FIELDS),
)

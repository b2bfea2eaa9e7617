# SPDX-License-Identifier: Apache-2.0
"""Published checkpoints of VoxelMorph: of the library, of the tables of IXI and LUMIR, of DilateMorph.

Source of the layouts: voxelmorph/voxelmorph and huaibovip/DilateMorph_TMI (Apache-2.0),
junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.io.checkpoints import load_checkpoint
from common.networks.voxelmorph import VoxelMorph
from common.spatial import identity_grid
from common.weights.family import Description, Family
from common.weights.keras import is_hdf5
from common.weights.state_dicts import KeyMap, find_place, rename_keys, unpack_state_dict
from common.weights.voxelmorph_keras import read_keras

_NAMES = {"pool": ("encoder", "decoder", "remaining"), "stride": ("downarm", "uparm", "extras")}
"""Way down, way up, and what comes after the last enlargement."""
_CONTAINER = "model_state"
_STATED = ("int_steps", "int_downsize")
"""Arguments that files of the library state as ours."""
_PUBLISHED: dict[str, Any] = {"sees": "intensities", "passes": 1}
"""Arguments that all published networks have, though no file states them."""
# Identity grids of the warps.
_GRID = re.compile(r"(^|\.)transformer\.grid$")


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Official entries of a file of any of the libraries, and arguments that it states beside them.

    Args:
        path: checkpoint of PyTorch, or HDF5 file of Keras, whose network integrates with the border continued.

    Raises:
        InputError: the file is missing, damaged, no such checkpoint, or holds a Keras layer of another shape.
    """
    if not is_hdf5(path):
        content = load_checkpoint(path)
        state = library_names(unpack_state_dict(content, str(path), _CONTAINER))
        config = content.get("config")
        stated = {name: config[name] for name in _STATED if isinstance(config, Mapping) and name in config}
        return state, _PUBLISHED | stated
    state, layer_of = read_keras(path)
    expected = dict(official_entries(describe_official(state).arguments))
    for name, shape in expected.items():
        if name not in state or state[name].shape != shape:
            found = f"is {tuple(state[name].shape)}, not {shape}" if name in state else "is missing"
            layer, part = layer_of.get(name, name), name.rpartition(".")[2]
            raise InputError(
                f"{path} is of another architecture: {part} of the layer {layer} {found}, as torch counts."
            )
    return state, _PUBLISHED | {"padding_mode": "border"}


def pack(official: dict[str, Tensor], arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Any]:
    """What a file of the library holds, arguments of its constructor among it, or one of the tables of IXI and LUMIR.

    Args:
        official: state dict.
        arguments: of the network.
        size: of the images.

    Raises:
        InputError: the network sees something else than the published ones, for which these weights mean nothing.
    """
    if arguments["sees"] != _PUBLISHED["sees"]:
        raise InputError(
            f"The network sees {arguments['sees']}, published ones see intensities: there is no published layout for "
            "its weights."
        )
    if arguments["backbone"] == "stride":
        return {"state_dict": official}
    config = {
        "inshape": [*size],
        "nb_unet_features": [arguments["encoder"], arguments["decoder"]],
        "nb_unet_conv_per_level": arguments["convs_per_level"],
        "unet_half_res": arguments["svf_resolution"] == 2,
        **{name: arguments[name] for name in _STATED},
    }
    return {"config": config, _CONTAINER: official}


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments."""
    return _key_map(arguments["backbone"], len(arguments["encoder"]) // arguments["convs_per_level"])


def _key_map(backbone: str, halvings: int) -> KeyMap:
    down, up, last = _NAMES[backbone]
    level, ours = (r"(\d+)\.(\d+)", r"\1.\2.") if backbone == "pool" else (r"(\d+)", r"\1.0.")
    return {
        _GRID.pattern: None,
        rf"^unet_model\.{down}\.{level}\.main\.": rf"unet.encoder.{ours}",
        rf"^unet_model\.{up}\.{level}\.main\.": rf"unet.decoder.{ours}",
        rf"^unet_model\.{last}\.(\d+)\.main\.": rf"unet.decoder.{halvings}.\1.",
        r"^flow\.": "flow.",
        r"^log_sigma\.": "log_variance.",
    }


def library_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of mmipt and DilateMorph, whose U-Net is a backbone, as the library has them."""
    return {re.sub(r"^flow\.conv\.", "flow.", name.removeprefix("backbone.")): value for name, value in state.items()}


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read the kind of U-Net, its channels and the number of axes off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a network of VoxelMorph, or a variant.
    """
    if variant is not None:
        raise InputError(f"A checkpoint of VoxelMorph tells which network it is of; leave --variant {variant} out.")
    for backbone, (down, *_) in _NAMES.items():
        levels = {name.split(".")[2] for name in state if name.startswith(f"unet_model.{down}.")}
        if levels:
            ours = rename_keys(state, _key_map(backbone, len(levels)))
            grid = state.get("transformer.grid")
            return _description(ours, backbone, None if grid is None else tuple(grid.shape[2:]))
    entries = ", ".join(list(state)[:3])
    raise InputError(f"This is no checkpoint of VoxelMorph, whose U-Net is unet_model; its first are {entries}.")


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell how the U-Net halves.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a network of VoxelMorph.
    """
    return _description(state, configured["backbone"])


def _description(state: Mapping[str, Tensor], backbone: str, size: tuple[int, ...] | None = None) -> Description:
    down, up = (_weights(state, f"unet.{part}") for part in ("encoder", "decoder"))
    if not down or len(up) != len(down) + 1 or "flow.weight" not in state:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"These are no weights of VoxelMorph, of a U-Net and its flow; the first are {entries}.")
    # Where nothing stands beside what comes from below, the enlargement was left out.
    left_out = sum(here[0].shape[1] == below[-1].shape[0] for below, here in zip(up[:-1], up[1:], strict=True))
    arguments = {
        "spatial_dims": state["flow.weight"].ndim - 2,
        "backbone": backbone,
        "encoder": [weight.shape[0] for level in down for weight in level],
        "decoder": [weight.shape[0] for level in up for weight in level],
        "convs_per_level": len(down[0]),
        "svf_resolution": 2**left_out,
        "probabilistic": "log_variance.weight" in state,
    }
    return Description(arguments, size)


def _weights(state: Mapping[str, Tensor], part: str) -> list[list[Tensor]]:
    """Of the convolutions of each level of a part."""
    matches = (re.fullmatch(rf"{re.escape(part)}\.(\d+)\.(\d+)\.weight", name) for name in state)
    places = sorted((int(match[1]), int(match[2]), match[0]) for match in matches if match)
    return [[state[name] for *_, name in level] for _, level in groupby(places, key=itemgetter(0))]


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry but the grids, in the official order."""
    shapes, places = FAMILY.shapes(arguments), key_map(arguments)
    for name in _official_names(arguments):
        place = find_place(name, places)
        assert place is not None
        yield name, shapes[place]


def _official_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    down, up, last = _NAMES[arguments["backbone"]]
    convolutions, each = len(arguments["encoder"]), arguments["convs_per_level"]
    layers = [f"{part}.{i // each}.{i % each}" for part in (down, up) for i in range(convolutions)]
    if arguments["backbone"] == "stride":
        layers = [f"{part}.{i}" for part in (down, up) for i in range(convolutions)]
    layers += [f"{last}.{i}" for i in range(len(arguments["decoder"]) - convolutions)]
    yield from (f"unet_model.{layer}.main.{parameter}" for layer in layers for parameter in ("weight", "bias"))
    yield from ("flow.weight", "flow.bias")
    if arguments["probabilistic"]:
        yield from ("log_sigma.weight", "log_sigma.bias")


def grids(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """The identity grid of the warp, (1, d, *size), which files of networks with strides hold.

    Args:
        arguments: of the network.
        size: that the official network is to be built for.
    """
    return {"transformer.grid": identity_grid(size).clone()} if arguments["backbone"] == "stride" else {}


FAMILY = Family(
    network=VoxelMorph,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=lambda name: _GRID.search(name) is not None,
    constants=grids,
    untold=("int_steps", "int_downsize", "padding_mode", "samples"),
    container=_CONTAINER,
    read=read,
    pack=pack,
)

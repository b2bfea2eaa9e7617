# SPDX-License-Identifier: Apache-2.0
"""SITReg's published checkpoints: today's code, its revision of 2023, and MIR's copy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.networks.sitreg import SITReg
from common.spatial.bspline import spline_kernel
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place, rename_keys

_EXTRACTOR, _UPDATES = r"^_feature_extractor\.", r"^_not_none_dense_extration_networks\.(\d+)\."
_LEVEL = _EXTRACTOR + r"downsampling_blocks\.(\d+)\."
# Official name -> ours; None drops the entry: buffers of coordinate systems, and the layer that nothing reads.
KEY_MAP: KeyMap = {
    r"_indicator$": None,
    _EXTRACTOR + r"initial_projection\.": "extractor.projection.",
    _EXTRACTOR + r"initial_convs\.convolutions\.(\d+)\.conv\.": r"extractor.block.convolutions.\1.",
    _EXTRACTOR + r"initial_convs\.normalizers\.": "extractor.block.normalisations.",
    _LEVEL + r"(downsampling|projection)\.conv\.": r"extractor.downsamplings.\1.\2.",
    _LEVEL + r"conv\.convolutions\.(\d+)\.conv\.": r"extractor.downsamplings.\1.block.convolutions.\2.",
    _LEVEL + r"conv\.normalizers\.": r"extractor.downsamplings.\1.block.normalisations.",
    _UPDATES + r"convolutions\.convolutions\.(\d+)\.conv\.": r"updates.\1.block.convolutions.\2.",
    _UPDATES + r"convolutions\.normalizers\.": r"updates.\1.block.normalisations.",
    _UPDATES + r"final_convolution\.conv\.": r"updates.\1.head.",
    r"^_affine_extraction_network\.linears\.0\.": None,
    r"^_affine_extraction_network\.linears\.1\.": "affine.hidden.0.",
    r"^_affine_extraction_network\.final_linear\.": "affine.head.",
}
KEY_MAP_2023: KeyMap = {
    r"upsampling_kernels\.\d+$": None,
    _EXTRACTOR + r"initial_projection\.": "extractor.projection.",
    _EXTRACTOR + r"initial_conv\.convolutions\.": "extractor.block.convolutions.",
    _EXTRACTOR + r"initial_conv\.normalizer_modules\.": "extractor.block.normalisations.",
    _LEVEL + r"(downsampling|projection)\.": r"extractor.downsamplings.\1.\2.",
    _LEVEL + r"double_conv\.convolutions\.": r"extractor.downsamplings.\1.block.convolutions.",
    _LEVEL + r"double_conv\.normalizer_modules\.": r"extractor.downsamplings.\1.block.normalisations.",
    _UPDATES + r"_convolution_block\.convolutions\.": r"updates.\1.block.convolutions.",
    _UPDATES + r"_convolution_block\.normalizer_modules\.": r"updates.\1.block.normalisations.",
    _UPDATES + r"_final_conv\.": r"updates.\1.head.",
    r"^_affine_extraction_network\._linear_1\.": "affine.hidden.0.",
    r"^_affine_extraction_network\._linear_2\.": "affine.hidden.1.",
    r"^_affine_extraction_network\._final_linear\.": "affine.head.",
}


# Buffers that hold nothing, and the spline's kernels: our network makes what it needs of them itself.
_CONSTANT = re.compile(r"\._indicator$|\.upsampling_kernels\.\d+$")
_FIRST, _OUR_FIRST = "_feature_extractor.initial_projection.weight", "extractor.projection.weight"
_PARAMETERS = ("weight", "bias")


def key_map(arguments: Mapping[str, Any]) -> KeyMap:
    """Official names to ours of the network with these arguments."""
    return KEY_MAP_2023 if arguments["rectify_first"] else KEY_MAP


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read the network off an official state dict: of today's code, of MIR's copy of it, or of the revision of 2023.

    Args:
        state: official name to tensor.
        variant: not needed, names tell the layouts apart.

    Raises:
        InputError: not a SITReg network, or one with an affine stage, whose image size the weights do not tell.
    """
    if _FIRST not in state:
        raise InputError(
            f"This is no checkpoint of SITReg: {_FIRST} is missing; its first entries are {', '.join(list(state)[:3])}."
        )
    if any(name.startswith("_affine_extraction_network") for name in state):
        raise InputError(
            "This checkpoint has an affine stage, which is made for one image size that the weights do not tell, and "
            "no bundle has one; load it in Python with common.weights.sitreg.KEY_MAP."
        )
    old = any(".initial_conv." in name for name in state)
    given = {name: value for name, value in state.items() if not _CONSTANT.search(name)}
    return _description(rename_keys(given, KEY_MAP_2023 if old else KEY_MAP), old)


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names, which does not tell the order of activation and normalisation.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network, "rectify_first" among them.

    Raises:
        InputError: not a SITReg network.
    """
    if _OUR_FIRST not in state:
        raise InputError(f"These are no weights of SITReg under this project's names: {_OUR_FIRST} is missing.")
    return _description(state, configured["rectify_first"])


def _description(ours: Mapping[str, Tensor], rectify_first: bool) -> Description:
    first = ours[_OUR_FIRST]
    features = [(first.shape[0], _convolutions(ours, "extractor.block"))]
    updates: list[tuple[int | None, int]] = []
    while f"extractor.downsamplings.{len(features) - 1}.projection.bias" in ours:
        block = f"extractor.downsamplings.{len(features) - 1}"
        features.append((ours[f"{block}.projection.bias"].shape[0], _convolutions(ours, f"{block}.block")))
    while f"updates.{len(updates)}.head.weight" in ours:
        block = f"updates.{len(updates)}"
        updates.append((ours[f"{block}.head.weight"].shape[1], _convolutions(ours, f"{block}.block")))
    updates += [(None, 2)] * (len(features) - len(updates))
    counts = {"convolutions": [n for _, n in features], "update_convolutions": [n for _, n in updates]}
    arguments = {
        "spatial_dims": first.ndim - 2,
        "channels": [n for n, _ in features],
        "update_channels": [n for n, _ in updates],
        **{name: None if set(numbers) == {2} else numbers for name, numbers in counts.items()},
        "rectify_first": rectify_first,
    }
    if "updates.0.block.normalisations.0.weight" not in ours:
        arguments["update_groups"] = None
    return Description(arguments)


def _convolutions(ours: Mapping[str, Tensor], block: str) -> int:
    return sum(name.startswith(f"{block}.convolutions.") and name.endswith(".bias") for name in ours)


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry but the constant ones, in the official order."""
    shapes = FAMILY.shapes(arguments)
    for name in _official_names(arguments):
        place = find_place(name, key_map(arguments))
        if place in shapes:
            yield name, shapes[place]


def _official_names(arguments: Mapping[str, Any]) -> Iterator[str]:
    """More than there are: each block with as many convolutions as the largest, and all normalisations."""
    old = arguments["rectify_first"]
    most = max([2, *(arguments.get("convolutions") or ()), *(arguments.get("update_convolutions") or ())])

    def block(prefix: str, conv: str, norm: str) -> Iterator[str]:
        for kind in (conv, norm):
            yield from (f"{prefix}.{kind.format(i)}.{p}" for i in range(most) for p in _PARAMETERS)

    names = ("convolutions.{}", "normalizer_modules.{}") if old else ("convolutions.{}.conv", "normalizers.{}")
    update, head = ("_convolution_block", "_final_conv") if old else ("convolutions", "final_convolution.conv")
    first, later, inner = ("initial_conv", "double_conv", "") if old else ("initial_convs", "conv", ".conv")
    for i in range(_updates(arguments)):
        network = f"_not_none_dense_extration_networks.{i}"
        yield from block(f"{network}.{update}", *names)
        yield from (f"{network}.{head}.{p}" for p in _PARAMETERS)
    yield from (f"_feature_extractor.initial_projection.{p}" for p in _PARAMETERS)
    yield from block(f"_feature_extractor.{first}", *names)
    for i in range(len(arguments["channels"]) - 1):
        down = f"_feature_extractor.downsampling_blocks.{i}"
        yield from (f"{down}.downsampling{inner}.{p}" for p in _PARAMETERS)
        yield from block(f"{down}.{later}", *names)
        yield from (f"{down}.projection{inner}.{p}" for p in _PARAMETERS)


def _updates(arguments: Mapping[str, Any]) -> int:
    return sum(n is not None for n in arguments["update_channels"])


def constants(arguments: Mapping[str, Any], size: Sequence[int]) -> dict[str, Tensor]:
    """Empty buffers of today's coordinate systems, or the spline's kernels of 2023 by their definition.

    Args:
        arguments: of the network.
        size: of the images, of which nothing depends.
    """
    updates = range(_updates(arguments))
    networks = [f"_not_none_dense_extration_networks.{i}" for i in updates]
    if arguments["rectify_first"]:
        return {
            f"{network}._upsampler.upsampling_kernels.{axis}": spline_kernel(2**level, torch.float32)
            for level, network in enumerate(networks)
            for axis in range(arguments["spatial_dims"])
        }
    systems = [f"_feature_coordinate_systems.{i}" for i in updates]
    systems += ["_transformation_coordinate_system", "_image_coordinate_system"]
    systems += [f"{n}.{s}_coordinate_system" for n in networks for s in ("_feature", "_transformation")]
    return {f"{system}._indicator": torch.empty(0) for system in systems}


FAMILY = Family(
    network=SITReg,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=key_map,
    entries=official_entries,
    is_constant=lambda name: _CONSTANT.search(name) is not None,
    constants=constants,
    kinds=(),
    untold=("groups", "update_groups"),
    fitting={"groups": 1, "update_groups": 1},
    container="registration_network",
)

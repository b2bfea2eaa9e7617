# SPDX-License-Identifier: Apache-2.0
"""VFA's published checkpoints: what they tell of the network, and their entries under our names and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from common.checks import InputError
from common.networks.vfa import VFA
from common.weights.family import Description, Family
from common.weights.state_dicts import KeyMap, find_place

# Official name -> ours; levels count from the finest in both.
KEY_MAP: KeyMap = {
    r"^encoder\.encoder_conv\.(\d+)\.(conv|norm)1\.": r"encoder.down.\1.0.\2.",
    r"^encoder\.encoder_conv\.(\d+)\.(conv|norm)2\.": r"encoder.down.\1.1.\2.",
    r"^encoder\.decoder_conv\.(\d+)\.(conv|norm)1\.": r"encoder.up.\1.0.\2.",
    r"^encoder\.decoder_conv\.(\d+)\.(conv|norm)2\.": r"encoder.up.\1.1.\2.",
    r"^encoder\.upsampling\.(\d+)\.": r"encoder.enlarge.\1.",
    r"^encoder\.in_norm\.": "encoder.first_norm.",
    r"^encoder\.in_conv\.": "encoder.first.",
    r"^encoder\.bottleneck_conv\.(conv|norm)1\.": r"encoder.bottom.0.\1.",
    r"^encoder\.bottleneck_conv\.(conv|norm)2\.": r"encoder.bottom.1.\1.",
    r"^decoder\.beta$": "beta",
    r"^decoder\.project\.(\d+)\.": r"attention.\1.project.",
}
_MAX_CHANNELS = 64


def describe_official(state: Mapping[str, Tensor], variant: str | None = None) -> Description:
    """Read widths, depth and number of axes off an official state dict.

    Args:
        state: official name to tensor.
        variant: there is none.

    Raises:
        InputError: not a VFA network, or a variant.
    """
    if variant is not None:
        raise InputError(f"There is one network of VFA and no variant {variant}; leave --variant out.")
    return _description(state, "encoder.in_conv", "encoder.bottleneck_conv.conv2", "decoder.project")


def describe_ours(state: Mapping[str, Tensor], configured: Mapping[str, Any]) -> Description:
    """The same of a state dict under our names.

    Args:
        state: what ``models/model.pt`` holds.
        configured: arguments of the bundle's network.

    Raises:
        InputError: not a VFA network.
    """
    return _description(state, "encoder.first", "encoder.bottom.1.conv", "attention")


def _description(state: Mapping[str, Tensor], first: str, bottom: str, project: str) -> Description:
    matching = next((name for name in state if name.startswith(f"{project}.0.") and name.endswith("weight")), "")
    missing = [name for name in (f"{first}.weight", f"{bottom}.weight", matching) if name not in state]
    if missing:
        entries = ", ".join(list(state)[:3])
        raise InputError(f"This is no checkpoint of VFA: {missing[0] or project} is missing; its first are {entries}.")
    kernel, widest = state[f"{first}.weight"], state[f"{bottom}.weight"].shape[0]
    levels = len({name.removeprefix(f"{project}.").split(".")[0] for name in state if name.startswith(f"{project}.")})
    doubled = kernel.shape[0] * 2**levels
    return Description(
        {
            "spatial_dims": kernel.ndim - 2,
            "downsamples": levels - 1,
            "start_channels": kernel.shape[0],
            "matching_channels": state[matching].shape[0],
            # Where doubling has not reached it, the published bound is as good as any.
            "max_channels": widest if widest < doubled else max(widest, _MAX_CHANNELS),
        }
    )


def official_entries(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every entry, in the official order."""
    shapes = FAMILY.shapes(arguments)
    for name in _official_names(arguments["downsamples"]):
        place = find_place(name, KEY_MAP)
        assert place is not None
        yield name, shapes[place]


def _official_names(downsamples: int) -> Iterator[str]:
    double = [f"{kind}{i}" for i in (1, 2) for kind in ("conv", "norm")]
    modules = [
        f"{way}.{i}.{part}" for way in ("encoder_conv", "decoder_conv") for i in range(downsamples) for part in double
    ]
    modules += [f"upsampling.{i}.{part}" for i in range(downsamples) for part in ("conv", "norm")]
    modules += ["in_norm", "in_conv", *(f"bottleneck_conv.{part}" for part in double)]
    yield from (f"encoder.{module}.{parameter}" for module in modules for parameter in ("weight", "bias"))
    yield "decoder.beta"
    yield from (f"decoder.project.{i}.{parameter}" for i in range(downsamples + 1) for parameter in ("weight", "bias"))


FAMILY = Family(
    network=VFA,
    describe_official=describe_official,
    describe_ours=describe_ours,
    key_map=lambda arguments: KEY_MAP,
    entries=official_entries,
    untold=("int_steps", "skip"),
)

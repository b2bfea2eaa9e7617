# SPDX-License-Identifier: Apache-2.0
"""Published weights into a bundle, and a bundle's weights back into the published layout."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.checks import InputError
from common.io.checkpoints import load_checkpoint, save_atomically
from common.networks.eoir import EOIR
from common.weights.eoir import EOIRWeights, describe_official, describe_ours, to_official, to_ours
from common.weights.state_dicts import CONTAINER, unpack_state_dict

_TARGET = "common.networks.EOIR"


def import_weights(
    bundle: Path, path: Path, output: Path | None = None, variant: str | None = None, overwrite: bool = False
) -> list[str]:
    """Write an official checkpoint as a bundle's ``models/model.pt``.

    Args:
        bundle: folder of the bundle.
        path: official checkpoint; only tensors and plain values are read, no code is run.
        output: file to write; default: ``models/model.pt`` of the bundle.
        variant: "plain" or "acdc" where the checkpoint does not tell.
        overwrite: whether ``output`` may exist.

    Returns:
        Sentences for the user: what was found, what was written, what to add to the commands.

    Raises:
        InputError: the file is no checkpoint of EOIR, is one of another variant than the bundle's, or does not fit;
            ``output`` exists.
    """
    output = _target(output or bundle / "models" / "model.pt", overwrite)
    configured = _configured(bundle)
    state = unpack_state_dict(load_checkpoint(path), str(path))
    weights = describe_official(state, variant)
    if weights.variant != configured["variant"]:
        raise InputError(
            f"{path} is of the {weights.variant} network, {bundle.name} has the {configured['variant']} one; import it "
            f"into a bundle of that network. Differing keys: {_differing(weights, configured)}."
        )
    ours = to_ours(state, weights)
    save_atomically(ours, output)
    return [
        f"{path}: {_sentence(weights)}, {sum(value.numel() for value in ours.values()):,} parameters.",
        *_advice(bundle, weights, configured),
        f"Wrote {output}.",
    ]


def export_weights(
    bundle: Path, output: Path, path: Path | None = None, size: Sequence[int] | None = None, overwrite: bool = False
) -> list[str]:
    """Write a bundle's weights in the official layout: official names and order, identity grids, and the container.

    Args:
        bundle: folder of the bundle.
        output: file to write, {"model_state_dict": state dict}; there is no optimiser in it.
        path: weights of the bundle; default: its ``models/model.pt``.
        size: spatial size for the identity grids; default: the size that the bundle's metadata state.
        overwrite: whether ``output`` may exist.

    Returns:
        Sentences for the user.

    Raises:
        InputError: no weights, weights of another network, or no size.
    """
    output = _target(output, overwrite)
    path = path or bundle / "models" / "model.pt"
    state = load_checkpoint(path)
    state = unpack_state_dict(state.get("network", state) if isinstance(state, dict) else state, str(path))
    weights = describe_ours(state, _configured(bundle)["variant"])
    size = size or training_size(bundle)
    if size is None:
        raise InputError(
            f"{bundle.name} states no training size, and the official layout holds grids of one: add --size, such as "
            "--size 160 224 192."
        )
    official = to_official(state, weights, size)
    save_atomically({CONTAINER: official}, output)
    return [f"Wrote {output}: {_sentence(weights)}, identity grids for {_times(size)} voxels."]


def training_size(bundle: Path) -> tuple[int, ...] | None:
    """Spatial size of the published training images, from ``training_spatial_shape`` of the metadata."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    size = metadata.get("training_spatial_shape")
    return None if size is None else tuple(int(n) for n in size)


def _target(output: Path, overwrite: bool) -> Path:
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: name another file, or replace it with --overwrite.")
    return output


def _configured(bundle: Path) -> dict[str, Any]:
    """Arguments of the bundle's network, the defaults of the class included."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def", instantiate=False).get_config()
    if network.get("_target_") != _TARGET:
        raise InputError(f"{bundle.name} has the network {network.get('_target_')}; only EOIR's weights are known.")
    defaults = {name: p.default for name, p in inspect.signature(EOIR).parameters.items()}
    return {**defaults, **{name: value for name, value in network.items() if name in defaults}}


def _advice(bundle: Path, weights: EOIRWeights, configured: dict[str, Any]) -> list[str]:
    lines = []
    other = {name: value for name, value in weights.arguments().items() if value != configured[name]}
    if other:
        options = " ".join(f"--network_def#{name} {value}" for name, value in other.items())
        lines.append(f"The network of {bundle.name} is configured otherwise: add {options} to every command.")
    expected = training_size(bundle)
    if weights.size is not None and expected not in (None, weights.size):
        lines.append(
            f"WARNING: trained at {_times(weights.size)} voxels, {bundle.name} is for {_times(expected or ())}; "
            "weights fit any size, but were not trained for this one."
        )
    lines.append(
        f"A checkpoint does not say whether velocities are integrated: int_steps is {configured['int_steps']} here."
    )
    return lines


def _sentence(weights: EOIRWeights) -> str:
    parts = [f"{weights.variant} network", f"start_channel {weights.start_channel}"]
    parts.append(f"search_radius {weights.search_radius}")
    if weights.kernel_size is not None:
        parts.append(f"kernel_size {weights.kernel_size}")
    if weights.size is not None:
        parts.append(f"trained at {_times(weights.size)} voxels")
    return ", ".join(parts)


def _differing(weights: EOIRWeights, configured: dict[str, Any]) -> str:
    """Entries that the bundle's network has and the other one lacks, or the other way round, under our names."""
    networks = []
    for arguments in (weights.arguments(), {name: configured[name] for name in ("variant", "start_channel")}):
        with torch.device("meta"):
            networks.append(set(EOIR(**arguments).state_dict()))
    lists = [sorted(networks[0] - networks[1]), sorted(networks[1] - networks[0])]
    phrases = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in zip(("unknown", "missing"), lists, strict=True)
        if keys
    ]
    return "; ".join(phrases) or "none, but the third axis is resampled in the plain network alone"


def _times(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)

# SPDX-License-Identifier: Apache-2.0
"""Weights of VoxelMorph and SynthMorph that were trained with TensorFlow, under the names of the PyTorch library.

Source of the names: voxelmorph/voxelmorph (Apache-2.0). Layers of the U-Net begin with a name of the model; on the way
up levels count down. In files of a whole training, SynthMorph's among them, the network is a model within a model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from common.checks import InputError
from common.weights.keras import load_keras

_LAYER = re.compile(r"(?:^|_)(enc_conv_\d+_\d+|dec_conv_\d+_\d+|dec_final_conv_\d+|flow|log_sigma)$")


def read_keras(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights of a file under the names of the PyTorch library.

    Args:
        path: HDF5 file of Keras.

    Returns:
        Official name to tensor, in the official order, and official name to layer of the file.

    Raises:
        InputError: the file is no such one, or of another architecture, with the first layer that differs.
    """
    state: dict[str, Tensor] = {}
    layer_of: dict[str, str] = {}
    weights = load_keras(path)
    found: dict[str, str] = {}
    for name in weights:
        layer = name.rpartition(".")[0]
        match = _LAYER.search(layer)
        if match is None or found.setdefault(match[1], layer) != layer:
            raise InputError(f"{path} is of another architecture: VoxelMorph has no place for the layer {layer}.")
    places = _places([*found])
    for place, ours in places.items():
        for part in ("weight", "bias"):
            if f"{found.get(place)}.{part}" not in weights:
                raise InputError(f"{path} is of another architecture: it lacks VoxelMorph's layer {place} ({part}).")
            state[f"{ours}.{part}"], layer_of[f"{ours}.{part}"] = weights[f"{found[place]}.{part}"], found[place]
    beyond = next((layer for place, layer in found.items() if place not in places), None)
    if beyond is not None:
        raise InputError(f"{path} is of another architecture: VoxelMorph has no place for the layer {beyond}.")
    return state, layer_of


def _places(found: Sequence[str]) -> dict[str, str]:
    """What Keras calls the layers of a network that has those found, to what PyTorch does, in PyTorch's order."""
    levels = 1 + max((int(name.split("_")[2]) for name in found if name.startswith("enc_conv")), default=0)
    each = max(sum(name.startswith("enc_conv_0_") for name in found), 1)
    last = max(sum(name.startswith("dec_final_conv") for name in found), 1)
    both = [(level, i) for level in range(levels) for i in range(each)]
    places = {f"enc_conv_{level}_{i}": f"unet_model.encoder.{level}.{i}.main" for level, i in both}
    places |= {f"dec_conv_{levels - 1 - level}_{i}": f"unet_model.decoder.{level}.{i}.main" for level, i in both}
    places |= {f"dec_final_conv_{i}": f"unet_model.remaining.{i}.main" for i in range(last)}
    return places | {head: head for head in ("flow", "log_sigma") if head == "flow" or head in found}

# SPDX-License-Identifier: Apache-2.0
"""Weights that Keras has saved as HDF5: by layer, wherever in the file the layer lies, with torch's order of axes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_PARTS = {"kernel": "weight", "bias": "bias"}


def is_hdf5(path: Path) -> bool:
    """Whether a file is HDF5, by its first bytes.

    Raises:
        InputError: there is no such file.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError as error:
        raise InputError(f"There is no checkpoint at {path}.") from error


def load_keras(path: Path) -> dict[str, Tensor]:
    """Kernels and biases of all layers; numbers alone are read.

    A file holds a model's weights, or a whole model with its weights below "model_weights". Those of a model within a
    model lie in a group of its name; names of layers tell them apart from each other.

    Args:
        path: HDF5 file of Keras 2.

    Returns:
        "LAYER.weight" (out, in, *kernel) and "LAYER.bias" (out,), float32, in the alphabetical order of the file.

    Raises:
        InputError: the file is damaged, has no such weights, has other ones than kernels and biases, or two layers of
            one name.
    """
    # Here, as nothing else needs it.
    import h5py

    found: dict[str, Tensor] = {}

    def visit(name: str, item: object) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        layer, _, leaf = name.rpartition("/")
        layer, part = layer.rpartition("/")[2], _PARTS.get(leaf.removesuffix(":0"))
        if part is None or item.dtype.kind != "f":
            raise InputError(f"{path} is of another architecture: layer {layer} has {leaf}, not a kernel and a bias.")
        if f"{layer}.{part}" in found:
            raise InputError(f"{path} holds the layer {layer} twice.")
        found[f"{layer}.{part}"] = _as_torch(np.asarray(item, np.float32))

    try:
        # Links to other files are not followed.
        with h5py.File(path, "r") as file:
            weights = file.get("model_weights", file)
            weights.visititems(visit)
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is no HDF5 file of Keras, or it is damaged.") from error
    if not found:
        raise InputError(f"{path} holds no weights of Keras' layers.")
    return found


def _as_torch(values: np.ndarray) -> Tensor:
    """Keras has (*kernel, in, out)."""
    value = torch.from_numpy(values)
    return value if value.ndim < 2 else value.movedim((-1, -2), (0, 1)).contiguous()

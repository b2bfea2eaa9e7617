# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on disk: written whole or not at all, read without running code from them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from common.checks import InputError
from common.io.files import write_bytes


def check_finite_weights(state: Mapping[str, Any], what: str) -> None:
    """Refuse a state dict with values that are NaN or infinite.

    Args:
        state: name to tensor; what is no tensor of floating point values does not count.
        what: is refused, for the message, such as the name of a file.

    Raises:
        InputError: naming the first entry and how many there are.
    """
    values = {
        name: value for name, value in state.items() if isinstance(value, torch.Tensor) and value.is_floating_point()
    }
    broken = [name for name, value in values.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise InputError(
            f"{what} has NaN or infinite values in {len(broken)} of {len(state)} entries, the first is {broken[0]}: "
            "the training failed or the file is damaged; go back to earlier weights."
        )


def save_atomically(content: Any, path: str | Path) -> None:
    """``torch.save`` through a temporary file that is moved when it is complete: never half a file.

    Raises:
        InputError: when the folder cannot be written to or the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_checkpoint(path: str | Path) -> Any:
    """Contents of a checkpoint, on the CPU, without running any code from it.

    Raises:
        InputError: when the file is missing, damaged, or holds anything but tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"There is no checkpoint at {path}.") from error
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{path} is no checkpoint of tensors and plain values, or it is damaged.") from error


def load_weights(network: nn.Module, path: str | Path, part: str | None = None) -> nn.Module:
    """Load a flat state dict (``models/model.pt``) into a network.

    Args:
        network: plain module.
        path: file of the weights, checkpoint of a training, or what NVFlare's server keeps.
        part: name of this network in a larger one that the file holds, or None.

    Returns:
        The network itself.

    Raises:
        InputError: when there is no such file (with what to do), or when names or shapes differ (with which) or
            values are NaN or infinite.
    """
    if not Path(path).is_file():
        raise InputError(
            f"There are no weights at {path}: train first (python -m monai.bundle run --config_file "
            "configs/train.json --dataset_dir ...), or name another file with --ckpt_path FILE."
        )
    state = load_checkpoint(path)
    for held in ("network", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(held), Mapping):
            state = state[held]
    own = network.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"{path} holds no state dict of a network.")
    if part is not None:
        state = {key.removeprefix(f"{part}."): state[key] for key in state if key.startswith(f"{part}.")}
    problems = [f"missing {key}" for key in own if key not in state]
    problems += [f"unknown {key}" for key in state if key not in own]
    problems += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        listed = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        found, wanted = (max((value.ndim for value in held.values()), default=0) - 2 for held in (state, own))
        other = (
            f"; the weights are {found}D: add --network_def#spatial_dims {found}"
            if {found, wanted} == {2, 3}
            else _tied_to_size(network, [key for key in own if key not in state or state[key].shape != own[key].shape])
        )
        raise InputError(f"{path} does not fit the network: {listed}{other}.")
    check_finite_weights(state, str(path))
    network.load_state_dict(state)
    return network


def _tied_to_size(network: nn.Module, differing: Sequence[str]) -> str:
    """What to say where all that differs is tied to the size of the images; parts name such weights in ``tied``."""
    parts = [(f"{name}." if name else "", module) for name, module in network.named_modules()]
    tied = {f"{prefix}{key}" for prefix, module in parts for key in getattr(module, "tied", ())}
    if not differing or not tied.issuperset(differing):
        return ""
    return "; the weights are for images of another size: give the network the size of those that it was trained with"

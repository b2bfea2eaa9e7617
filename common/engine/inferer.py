# SPDX-License-Identifier: Apache-2.0
"""How trainer and evaluator call a registration network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor

from common.processor import has_bfloat16

WAYS_BACK = {"inverse_ddf": "ddf", "inverse_pyramid": "pyramid", "inverse_velocity": "velocity", "inverse_map": "map"}
"""Outputs of one direction, and what they are of the exchanged images."""


class RegistrationInferer(Inferer):
    """Calls the network on a pair, in bfloat16 autocast if asked, on any device.

    MONAI's own ``amp`` switch is for CUDA alone; this one also serves the CPU. Only the network's convolutions run in
    bfloat16: fields, warps and losses stay in float32, and no gradient scaling is needed. On a processor or GPU without
    bfloat16, where it would take many times as long as float32, all is float32 and a warning says so, once.

    A network in training that has no ``inverse_ddf``, although it is asked for one by this name, is called on the
    exchanged images, too: so any network can be trained with terms that look at both directions.

    Along an axis of one voxel nothing moves: networks pad it, and what they say of it is about the padding. A network
    of two dimensions sees volumes of one slice without this axis, and its fields come back as those of volumes.

    Args:
        details: what is wanted beside the displacement: names of outputs, or patterns such as "*_map", of which the
            network gives those that it has; True for all. The names stand in docs/conventions.md.
        amp: whether to use bfloat16 autocast.
    """

    def __init__(self, details: bool | Collection[str] = False, amp: bool = False) -> None:
        super().__init__()
        self.details = details if isinstance(details, bool) else tuple(details)
        self.amp = amp

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The network's outputs as a dict with at least ``ddf`` (B, d, *spatial), or its ``map`` alone in training."""
        enabled = self.amp and _can_use_bfloat16(inputs.device)
        left_out = slice_axis(inputs, network)
        if left_out is not None:
            return as_volumes(self(inputs.squeeze(left_out), network), left_out)
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=enabled):
            if not self.details:
                return _inside_the_slice({"ddf": network(inputs)})
            outputs = network(inputs, details=self.details)
            if getattr(network, "training", False) and not {"inverse_ddf", "inverse_map"} & {*outputs}:
                # A field that stands in for a map is asked for with a star.
                asked = [] if isinstance(self.details, bool) else [name.removesuffix("*") for name in self.details]
                outputs |= _way_back(inputs, network, asked) if "inverse_ddf" in asked else {}
            return _inside_the_slice(outputs)


def _way_back(inputs: Tensor, network: Callable[..., Any], asked: Collection[str]) -> dict[str, Any]:
    """What the network says of the exchanged images, under the names of the other direction."""
    wanted = {name: own for name, own in WAYS_BACK.items() if name in asked}
    exchanged = network(inputs.flip(1), details=tuple(wanted.values()))
    return {name: exchanged[own] for name, own in wanted.items() if own in exchanged}


def _inside_the_slice(outputs: dict[str, Any]) -> dict[str, Any]:
    """The outputs without displacements, and deviations of such, along axes of one voxel."""
    for name in ("ddf", "inverse_ddf", "deviation"):
        field = outputs.get(name)
        if field is not None and 1 in field.shape[2:]:
            moves = torch.tensor([float(n > 1) for n in field.shape[2:]], device=field.device, dtype=field.dtype)
            outputs[name] = field * moves.view(1, -1, *[1] * len(moves))
    return outputs


def slice_axis(inputs: Tensor, network: Callable[..., Any]) -> int | None:
    """The axis of one voxel that a network of two dimensions, which is not in training, does not see; None for none.

    Args:
        inputs: (B, 2, *spatial).
        network: says with ``arguments`` of how many dimensions it is.
    """
    dims = getattr(network, "arguments", {}).get("spatial_dims")
    if dims != 2 or inputs.ndim != 5 or getattr(network, "training", False):
        return None
    return next((axis for axis in (4, 3, 2) if inputs.shape[axis] == 1), None)


def as_volumes(outputs: dict[str, Any], axis: int) -> dict[str, Any]:
    """Fields and maps of slices, with the axis that was left out and no displacement along it.

    Args:
        outputs: those (B, C, *spatial) of two dimensions become volumes, dictionaries of figures stay, others are lost.
        axis: 2, 3 or 4.
    """
    found: dict[str, Any] = {name: values for name, values in outputs.items() if isinstance(values, dict)}
    for name, values in outputs.items():
        if isinstance(values, Tensor) and values.ndim == 4:
            values = values.unsqueeze(axis)
            if values.shape[1] == 2:
                parts = [*values.split(1, dim=1)]
                parts.insert(axis - 2, torch.zeros_like(parts[0]))
                values = torch.cat(parts, dim=1)
            found[name] = values
    return found


@cache
def _can_use_bfloat16(device: torch.device) -> bool:
    able = has_bfloat16(device)
    if not able:
        kind = "GPU" if device.type == "cuda" else "processor"
        warnings.warn(f"--amp true has no effect: this {kind} has no bfloat16, float32 is used.", stacklevel=3)
    return able

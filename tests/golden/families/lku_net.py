# SPDX-License-Identifier: Apache-2.0
"""LKU-Net: networks, training, and the large-kernel block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import layout
import numpy as np
import torch
from families import lku_net_losses
from torch import Tensor

from common import losses
from common.blocks.lku_net import FoldedKernelBlock
from common.networks import LKUNet
from common.spatial import warp
from common.weights.family import to_ours
from common.weights.lku_net import FAMILY
from common.weights.state_dicts import find_place, rename_keys

Arrays = dict[str, np.ndarray]
# Weight of the smoothness, as the notes have it.
SMOOTHNESS = {"ixi_diff": 5.0, "oasis_full_batch2": 0.1}
RATE = 0.01


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    return CASES.get(meta["case"], _network)(meta, arrays)


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _official(meta: dict[str, Any]) -> dict[str, Tensor]:
    filled = layout.fill(meta["state_dict"], **meta["fill"])
    return {name: _tensor(values) for name, values in filled.items()}


def _build(meta: dict[str, Any]) -> LKUNet:
    state = _official(meta)
    arguments = FAMILY.describe_official(state, None).arguments
    arguments |= {
        "half_res": meta["case"] == "oasis_half",
        "int_steps": 7 if meta["constructor"]["diffeomorphic"] else 0,
    }
    network = LKUNet(**arguments)
    network.load_state_dict(to_ours(FAMILY, state, arguments))
    return network


def _normalised(ddf: Tensor) -> np.ndarray:
    """From voxels to units of which the image has two along each axis."""
    return (ddf.detach() * 2 / (_sizes(ddf) - 1)).numpy()


def _sizes(field: Tensor) -> Tensor:
    return torch.tensor(field.shape[2:], dtype=field.dtype).view(1, -1, *[1] * (field.ndim - 2))


def _network(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    moving, fixed = _tensor(arrays["in/moving"]), _tensor(arrays["in/fixed"])
    network = _build(meta)
    outputs = network(torch.cat([moving, fixed], dim=1), details=True)
    results = {
        "out/field": _normalised(outputs["velocity"]),
        "out/warped": warp(moving, outputs["ddf"].detach(), padding_mode="zeros").numpy(),
    }
    if network.int_steps:
        results["out/integrated"] = _normalised(outputs["ddf"])
    return results | (_training(meta, network, moving, fixed) if "traj/loss" in arrays else {})


class Smoothness(losses.GradientLoss):
    """As published, where the size of an axis is taken for its extent, which is one voxel less."""

    def __init__(self) -> None:
        super().__init__("l2", spacing="extent")

    def forward(self, pred: Tensor) -> Tensor:
        return super().forward(pred * _sizes(pred) / (_sizes(pred) - 1))


def _loss(weight: float) -> losses.RegistrationLoss:
    terms = {
        "ncc": losses.Term(losses.LNCCLoss(offset=0), ["warped", "fixed"]),
        "smooth": losses.Term(Smoothness(), ["velocity"], weight),
    }
    return losses.RegistrationLoss(terms, padding_mode="zeros")


def _training(meta: dict[str, Any], network: LKUNet, moving: Tensor, fixed: Tensor) -> Arrays:
    weight = SMOOTHNESS[meta["case"]]
    loss = _loss(weight)
    optimiser = torch.optim.SGD(network.parameters(), lr=RATE)
    results: Arrays = {}
    trajectory = []
    for total in _steps(network, loss, moving, fixed, optimiser):
        trajectory.append(float(total))
        if not results:
            terms = loss.terms_of_last_call()
            results["loss/ncc"] = np.asarray(terms["ncc"])
            results["loss/smooth"] = np.asarray(terms["smooth"])
            results["grad/norms"] = _norms(meta, network)
        if len(trajectory) == 4:
            return results | {"traj/loss": np.array(trajectory)}
    raise AssertionError


def _steps(
    network: LKUNet, loss: losses.RegistrationLoss, moving: Tensor, fixed: Tensor, optimiser: torch.optim.Optimizer
) -> Iterator[Tensor]:
    """The loss before each step of the optimiser, while its gradients are there."""
    while True:
        optimiser.zero_grad()
        total = loss(network(torch.cat([moving, fixed], dim=1), loss.details), {"moving": moving, "fixed": fixed})
        total.backward()
        yield total.detach()
        optimiser.step()


def _norms(meta: dict[str, Any], network: LKUNet) -> np.ndarray:
    """Of the gradients, in the official order; NaN for what is never called."""
    parameters, places = dict(network.named_parameters()), FAMILY.key_map(network.arguments)
    norms = []
    for name, *_ in meta["state_dict"]:
        place = find_place(name, places)
        gradient = None if place is None else parameters[place].grad
        norms.append(np.nan if gradient is None else float(gradient.norm()))
    return np.array(norms)


def _block(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    arguments, prefix = meta["constructor"], "down.0.1."
    module = FoldedKernelBlock(3, arguments["in_channels"], arguments["kernel_size"])
    official = {f"ec3.{name}": value for name, value in _official(meta).items()}
    renamed = rename_keys(official, FAMILY.key_map({"half_res": False}))
    module.load_state_dict({name.removeprefix(prefix): value for name, value in renamed.items()})
    x = _tensor(arrays["in/x"], grad=True)
    y = module(x)
    y.square().mean().backward()
    parameters = dict(module.named_parameters())
    gradients = [parameters[name.removeprefix(prefix)].grad for name in renamed]
    assert x.grad is not None
    norms = np.array([float(g.norm()) for g in gradients if g is not None])
    return {"out/y": y.detach().numpy(), "grad/x": x.grad.numpy(), "grad/norms": norms}


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {"lk_block": _block, **lku_net_losses.CASES}

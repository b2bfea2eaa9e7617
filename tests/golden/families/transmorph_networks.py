# SPDX-License-Identifier: Apache-2.0
"""TransMorph: stages of the encoder, networks and their training, also that of TransMorphTVF."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import layout
import numpy as np
import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch import Tensor, nn

from common import losses
from common.blocks.swin import SwinStage
from common.spatial import warp
from common.weights import transmorph, transmorph_tvf
from common.weights.family import Family, to_ours
from common.weights.state_dicts import find_place, rename_keys

Arrays = dict[str, np.ndarray]
RATE = 0.01
FAMILIES = {"TransMorph": transmorph.FAMILY, "TransMorphTVFForward": transmorph_tvf.FAMILY}
"""By the published class."""


def _official(meta: dict[str, Any]) -> dict[str, Tensor]:
    filled = layout.fill(meta["state_dict"], **meta["fill"])
    return {name: torch.as_tensor(values) for name, values in filled.items()}


def _stage(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """One stage, and the merging of its voxels, as parts of a network of two."""
    given = meta["constructor"]
    grid, dim, heads = given["grid"], given["dim"], given["num_heads"]
    stage = SwinStage(dim, heads, given["window_size"], given["qkv_bias"], [0.0] * given["depth"])
    merge = PatchMergingV2(dim, spatial_dims=3)
    arguments = {"spatial_dims": 3, "output_resolution": "full", "conv_skip": True, "depths": [], "trans_skip": True}
    official = {f"transformer.layers.0.{name}": value for name, value in _official(meta).items()}
    ours = rename_keys(official, transmorph.FAMILY.key_map(arguments))
    for module, prefix in ((stage, "unet.encoder.stages.0."), (merge, "unet.encoder.merge.0.")):
        entries = {name.removeprefix(prefix): value for name, value in ours.items() if name.startswith(prefix)}
        if entries:
            module.load_state_dict(entries)
    tokens = torch.from_numpy(arrays["in/tokens"]).requires_grad_()
    x = stage(tokens.view(1, *grid, dim))
    results = {"out/stage": x.detach().flatten(1, -2).numpy()}
    loss = x.square().mean()
    if given["downsample"]:
        merged = merge(x)
        results["out/merged"] = merged.detach().flatten(1, -2).numpy()
        loss = loss + merged.square().mean()
    loss.backward()
    assert tokens.grad is not None
    index = dict(stage.named_buffers())["blocks.0.attn.relative_position_index"]
    return results | {"grad/tokens": tokens.grad.numpy(), "out/relative_position_index": index.numpy()}


def build(meta: dict[str, Any], family: Family, **options: Any) -> nn.Module:
    """The network of a file with its weights, to be evaluated; ``options`` are those that weights do not tell."""
    given = meta["constructor"]
    official = _official(meta)
    described = family.describe_official(official, None).arguments
    untold = {"window": given["window_size"], "drop_path": given["drop_path_rate"], **options}
    network = family.network(**{**described, **untold}).eval()
    arguments: Any = network.arguments
    network.load_state_dict(to_ours(family, official, arguments))
    return network


def images(meta: dict[str, Any], arrays: Arrays) -> dict[str, Tensor]:
    """The pairs of a file that names them by their seeds."""
    size = meta["constructor"]["img_size"]
    names = dict(zip(("moving", "fixed"), arrays["in/seeds"].tolist(), strict=True))
    batch = next(len(a) for name, a in arrays.items() if re.match(r"out/warped_s\d", name))
    # Of further samples the seeds are 100 more.
    return {
        name: torch.stack([torch.from_numpy(layout.blobs(size, seed + 100 * b))[None] for b in range(batch)])
        for name, seed in names.items()
    }


def _loss() -> losses.RegistrationLoss:
    terms = {
        "ncc": losses.Term(losses.LNCCLoss(offset=0.0), ["warped", "fixed"]),
        "grad": losses.Term(losses.GradientLoss(), ["flow"]),
    }
    return losses.RegistrationLoss(terms, padding_mode="zeros")


def _registered(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    family = FAMILIES[meta["constructor"]["cls"]]
    network, data, loss = build(meta, family), images(meta, arrays), _loss()
    outputs = network(torch.cat([data["moving"], data["fixed"]], dim=1), details=True)
    flow = outputs["flow"].detach()
    found = {"flow": flow, "warped": warp(data["moving"], outputs["ddf"].detach(), padding_mode="zeros")}
    results = {"out/flow_stats": statistics(flow[0]), **strided(found, arrays)}
    if "loss/ncc" in arrays:
        results |= _training(meta, arrays, network, loss, data)
    return results


def strided(found: dict[str, Tensor], arrays: Arrays) -> Arrays:
    """Every n-th value of those that the file has so, by their names without the stride."""
    results = {}
    for name in arrays:
        what, _, step = name.removeprefix("out/").rpartition("_s")
        if step.isdigit():
            every = slice(None, None, int(step))
            results[name] = found[what][..., every, every, every].numpy()
    return results


def _training(
    meta: dict[str, Any], arrays: Arrays, network: nn.Module, loss: losses.RegistrationLoss, data: dict[str, Tensor]
) -> Arrays:
    results: Arrays = {}
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    image, values = torch.cat([data["moving"], data["fixed"]], dim=1), []
    for _ in arrays["traj/loss"]:
        optimizer.zero_grad()
        total = loss(network(image, loss.details), data)
        total.backward()
        values.append(total.item())
        if not results:
            results = {f"loss/{name}": np.asarray(value) for name, value in loss.terms_of_last_call().items()}
            results["grad/norms"] = _norms(meta, network)
        optimizer.step()
    return results | {"traj/loss": np.array(values)}


def _norms(meta: dict[str, Any], network: nn.Module) -> np.ndarray:
    """Of the gradients, in the official order; NaN where the published network has a parameter that it does not use."""
    arguments: Any = network.arguments
    places = FAMILIES[meta["constructor"]["cls"]].key_map(arguments)
    parameters = dict(network.named_parameters())
    norms = []
    for name, *_ in meta["state_dict"]:
        gradient = None if (place := find_place(name, places)) is None else parameters[place].grad
        norms.append(np.nan if gradient is None else float(gradient.norm()))
    return np.array(norms)


def statistics(flow: Tensor) -> np.ndarray:
    """Mean, standard deviation, extremes and norm of each channel (C, *spatial)."""
    values = flow.double().flatten(1)
    rows = [values.mean(1), values.std(1, correction=0), values.amin(1), values.amax(1), values.norm(dim=1)]
    return torch.stack(rows, dim=1).numpy()


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {"stage": _stage, **dict.fromkeys(FAMILIES, _registered)}
"""By the published class."""

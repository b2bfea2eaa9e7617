# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph's networks and their training, of either library; SynthMorph's are among them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import layout
import numpy as np
import torch
from torch import Tensor

from common import losses
from common.networks import VoxelMorph
from common.spatial import warp
from common.weights.family import to_ours
from common.weights.state_dicts import find_place
from common.weights.voxelmorph import FAMILY, library_names

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file of a network, under the names that it has there."""
    network, data = build(meta), pair(arrays)
    outputs = network(torch.cat([data["moving"], data["fixed"]], dim=1), details=True)
    results = outputs_of(network, outputs, data)
    results = {name: value for name, value in results.items() if name in arrays}
    terms = _terms(meta)
    return results | (_training(network, terms, data, meta, arrays) if terms else {})


def build(meta: dict[str, Any]) -> VoxelMorph:
    """The network of a file, with its weights."""
    given = meta["constructor"]
    official = layout.fill(meta["state_dict"], **meta["fill"])
    state = library_names({name: torch.from_numpy(values) for name, values in official.items()})
    arguments = FAMILY.describe_official(state, None).arguments
    network = VoxelMorph(
        **arguments,
        int_steps=given.get("int_steps", 0),
        int_downsize=given.get("int_downsize", given.get("int_resolution", 2)),
        padding_mode=padding(meta),
    )
    network.load_state_dict(to_ours(FAMILY, state, arguments))
    return network


def padding(meta: dict[str, Any]) -> Any:
    """What lies outside: that of the library which a file was computed with."""
    return "border" if "TensorFlow back end" in meta["notes"] else "zeros"


def pair(arrays: Arrays) -> dict[str, Tensor]:
    """What the data of a file have, by our names."""
    names = {"source": "moving", "target": "fixed"}
    data = {ours: torch.from_numpy(arrays[f"in/{name}"]) for name, ours in names.items()}
    maps = {f"{ours}_label": f"in/{name}_seg" for name, ours in names.items()}
    return data | {ours: torch.from_numpy(arrays[name]).long() for ours, name in maps.items() if name in arrays}


def outputs_of(network: VoxelMorph, outputs: Mapping[str, Tensor], data: Mapping[str, Tensor]) -> Arrays:
    """Fields and warped images, by the names of the files."""
    fields = {name: field.detach() for name, field in outputs.items()}
    results = {"out/flow": fields["ddf"], "out/preint_flow": fields["velocity"]}
    results["out/warped"] = warp(data["moving"], fields["ddf"], padding_mode=network.padding_mode)
    if "inverse_ddf" in fields:
        results["out/warped_target"] = warp(data["fixed"], fields["inverse_ddf"], padding_mode=network.padding_mode)
    return {name: value.numpy() for name, value in results.items()}


def _terms(meta: dict[str, Any]) -> dict[str, losses.Term]:
    """Of the loss, by the names of the files."""
    given = meta["constructor"]
    there, back = ["warped", "fixed"], ["warped_back", "moving"]
    if "reg_field" in given:
        ncc = losses.Term(losses.LNCCLoss(guard="each", offset=0.0), there)
        return {"ncc": ncc, "grad": losses.Term(losses.GradientLoss(), ["ddf"], 2.0)}
    if "loss_reg_weight" in given:
        terms = {
            "sim": losses.Term(losses.LNCCLoss(statistics="mean"), there),
            "reg": losses.Term(losses.GradientLoss(), ["ddf"], given["loss_reg_weight"]),
        }
        if given["with_seg"]:
            overlap = losses.WarpedDiceLoss(given["num_classes"], squared=True)
            terms["seg"] = losses.Term(overlap, ["moving_label", "fixed_label", "ddf"])
        return terms
    if "image_loss" in given:
        similarity = losses.LNCCLoss(offset=0.0) if given["image_loss"] == "ncc" else losses.MSELoss()
        terms = {"sim": losses.Term(similarity, there, 0.5 if given.get("bidir") else 1.0)}
        if given.get("bidir"):
            terms["sim_back"] = losses.Term(similarity, back, 0.5)
        weight = given["weight"] * given["loss_mult"]
        return terms | {"reg": losses.Term(losses.GradientLoss(), ["velocity"], weight)}
    return {}


def _training(
    network: VoxelMorph, terms: dict[str, losses.Term], data: dict[str, Tensor], meta: dict[str, Any], arrays: Arrays
) -> Arrays:
    """Terms with their weights, gradients of the first step, and the totals of the steps that follow."""
    loss = losses.RegistrationLoss(terms, padding_mode=padding(meta))
    rate = re.search(r"SGD momentum 0 rate ([\d.]+\d)", meta["notes"])
    optimizer = torch.optim.SGD(network.parameters(), lr=float(rate[1]) if rate else 0.0)
    results: Arrays = {}
    totals = []
    for _ in arrays.get("traj/loss", [0]):
        optimizer.zero_grad()
        total = loss(network(torch.cat([data["moving"], data["fixed"]], dim=1), loss.details), data)
        total.backward()
        totals.append(total.item())
        if not results:
            values = loss.terms_of_last_call()
            results = {f"loss/{name}": np.asarray(terms[name].weight * value) for name, value in values.items()}
            results["grad/norms"] = norms(network, meta)
        optimizer.step()
    return results | ({"traj/loss": np.array(totals)} if "traj/loss" in arrays else {})


def norms(network: VoxelMorph, meta: dict[str, Any]) -> np.ndarray:
    """Of the gradients, in the order of the file."""
    parameters, places = dict(network.named_parameters()), FAMILY.key_map(network.arguments)
    names = library_names({name: torch.empty(0) for name, *_ in meta["state_dict"]})
    found = []
    for name in names:
        place = find_place(name, places)
        assert place is not None
        gradient = parameters[place].grad
        assert gradient is not None
        found.append(float(gradient.norm()))
    return np.array(found)


CASES = {name: compute for name in ("pool_", "stride_", "train_", "mmipt_register")}
"""Beginnings of the names of cases, and what computes them."""

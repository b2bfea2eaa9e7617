# SPDX-License-Identifier: Apache-2.0
"""VFA: networks and their training, the attention, sampling grids and losses of the published code.

Networks compute in float64 here. In float32 a single activation near 0 whose sign is a matter of rounding, and which
convolution of which library rounds how, moves a training step by more than the files allow; without rounding the
published numbers come out. ``tests/common/networks/test_vfa.py`` compares float32 with float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import layout
import numpy as np
import torch
from torch import Tensor, nn

from common import losses
from common.blocks.vector_field_attention import VectorFieldAttention, expected_offset, unit_offsets
from common.networks.vfa import VFA
from common.spatial import identity_grid, resize_ddf, sample_at, warp
from common.weights.state_dicts import find_place, rename_keys
from common.weights.vfa import KEY_MAP

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    if meta["kind"] == "network":
        return _network(meta, arrays)
    return OTHERS[meta["case"]](meta, arrays)


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _leaf(array: np.ndarray) -> Tensor:
    """An image for a network."""
    return _tensor(array).double().requires_grad_()


def _build(meta: dict[str, Any]) -> VFA:
    arguments = meta["constructor"]["model"]
    network = VFA(
        len(arguments["in_shape"]),
        downsamples=arguments["downsamples"],
        start_channels=arguments["start_channels"],
        matching_channels=arguments["matching_channels"],
        int_steps=arguments["int_steps"],
        skip=bool(arguments["skip"]),
    )
    official = layout.fill(meta["state_dict"], **meta["fill"])
    network.load_state_dict(rename_keys({name: _tensor(values) for name, values in official.items()}, KEY_MAP))
    return network.double()


def _images(meta: dict[str, Any], arrays: Arrays) -> dict[str, Tensor]:
    if "in/fixed" in arrays:
        return {name: _leaf(arrays[f"in/{name}"]) for name in ("fixed", "moving")}
    size = tuple(meta["constructor"]["model"]["in_shape"])
    made = re.findall(r"(\w+) = ([\d.]+) \* blobs\(.*?\), (\d+)\)", " ".join(meta["notes"]))
    return {name: _leaf(np.float32(scale) * _blobs(size, int(seed))[None, None]) for name, scale, seed in made}


def _blobs(shape: tuple[int, ...], seed: int, count: int = 12) -> np.ndarray:
    """The image that a file names instead of holding it: Gaussian blobs, the largest value 1, in half precision."""
    rng = np.random.RandomState(seed)  # noqa: NPY002
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    image = np.zeros(shape)
    for _ in range(count):
        centre, width, height = rng.uniform(-0.7, 0.7, len(shape)), rng.uniform(0.15, 0.45), rng.uniform(0.3, 1)
        distance = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        image += height * np.exp(-distance / (2 * width**2))
    return (image / image.max()).astype(np.float16).astype(np.float32)


def _loss(meta: dict[str, Any], masked: bool) -> losses.RegistrationLoss:
    dims = len(meta["constructor"]["model"]["in_shape"])
    given = meta["constructor"]["loss"]
    masks = ["fixed_mask", "moving_mask"] if masked else []
    on = ["warped", "fixed", "ddf", *masks]
    terms: dict[str, losses.Term] = {}
    for name, arguments in given.items():
        if name == "NCC":
            terms[name] = losses.Term(losses.MaskedLoss(_ncc(dims, arguments)), on, arguments["weight"])
        elif name == "MI":
            terms[name] = losses.Term(losses.MaskedLoss(losses.MutualInformationLoss()), on, arguments["weight"])
        elif name == "Grad":
            terms[name] = losses.Term(losses.GradientLoss(), ["ddf"], arguments["weight"])
    return losses.RegistrationLoss(terms, padding_mode="border")


def _ncc(dims: int, arguments: dict[str, Any]) -> nn.Module:
    return losses.LNCCLoss(dims, arguments["window_size"], eps=2.0**-23, statistics="mean", offset=0.0, guard="max")


def _network(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, images = _build(meta), _images(meta, arrays)
    masks = {name: _tensor(arrays[f"in/{name}"]) for name in ("fixed_mask", "moving_mask") if f"in/{name}" in arrays}
    loss = _loss(meta, bool(masks))
    outputs = network(torch.cat([images["moving"], images["fixed"]], dim=1), details=True)
    total = loss(outputs, images | masks)
    total.backward()
    results = {"loss/total": total.detach().numpy()}
    results |= {f"loss/{name}": np.asarray(value) for name, value in loss.terms_of_last_call().items()}
    ddf = outputs["ddf"].detach()
    warped = warp(images["moving"], ddf).detach()
    results |= {"out/stats_displacement": _statistics(ddf), "out/stats_warped": _statistics(warped)}
    results["out/displacement"] = _strided(ddf, arrays["out/displacement"])
    pyramid = outputs["pyramid"][::-1]
    for i, (coarse, fine) in enumerate(zip(pyramid, pyramid[1:], strict=False)):
        if f"out/stats_composed{i}" in arrays:
            size = fine.shape[2:]
            results[f"out/stats_composed{i}"] = _statistics(resize_ddf(coarse.detach(), size) + identity_grid(size))
    results |= _gradients(network, meta, images)
    return results | _trajectory(network, loss, images | masks, meta, arrays)


def _statistics(value: Tensor) -> np.ndarray:
    values = value.detach().double().movedim(1, 0).flatten(1)
    rows = [values.mean(1), values.std(1), values.amin(1), values.amax(1), values.norm(dim=1)]
    return torch.stack(rows).numpy()


def _strided(ddf: Tensor, stored: np.ndarray) -> np.ndarray:
    values = ddf.numpy()
    if values.ndim == 5:
        values = values[..., ::2, 1::2, :]
    return values.reshape(-1)[::97] if stored.ndim == 1 else values


def _gradients(network: VFA, meta: dict[str, Any], images: dict[str, Tensor]) -> Arrays:
    parameters = dict(network.named_parameters())
    norms = []
    for official, *_ in meta["state_dict"]:
        place = find_place(official, KEY_MAP)
        assert place is not None
        gradient = parameters[place].grad
        norms.append(np.nan if gradient is None else float(gradient.norm()))
    results = {"grad/norms": np.array(norms)}
    for name in ("fixed", "moving"):
        gradient = images[name].grad
        assert gradient is not None
        results[f"grad/norm_in_{name}"] = gradient.norm().numpy()
    return results


def _trajectory(network: VFA, loss: nn.Module, data: dict[str, Tensor], meta: dict[str, Any], arrays: Arrays) -> Arrays:
    if "traj/loss" not in arrays:
        return {}
    rate = re.search(r"SGD rate ([\d.]+)", " ".join(meta["notes"]))
    assert rate is not None
    optimizer = torch.optim.SGD(network.parameters(), lr=float(rate[1]))
    image = torch.cat([data["moving"], data["fixed"]], dim=1).detach()
    values = []
    for _ in arrays["traj/loss"]:
        optimizer.zero_grad()
        total = loss(network(image, details=True), data)
        values.append(total.item())
        total.backward()
        optimizer.step()
    return {"traj/loss": np.array(values)}


def _attention(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for dims in (2, 3):
        cotangent = _tensor(arrays[f"in/cotangent_{dims}d"])
        results[f"out/R_{dims}d"] = unit_offsets(dims, cotangent).numpy()
        for case, temperature in (("default", None), ("t0.5", 0.5)):
            query = _tensor(arrays[f"in/query_{dims}d"], True)
            key = _tensor(arrays[f"in/key_padded_{dims}d"], True)
            found = expected_offset(query, key, temperature)
            (found * cotangent).sum().backward()
            assert query.grad is not None and key.grad is not None
            results[f"out/{case}_{dims}d"] = found.detach().numpy()
            results[f"grad/query_{case}_{dims}d"] = query.grad.numpy()
            results[f"grad/key_{case}_{dims}d"] = key.grad.numpy()
        results |= _attention_block(dims, arrays)
    return results


def _attention_block(dims: int, arrays: Arrays) -> Arrays:
    weight, bias = (_tensor(arrays[f"in/block_{name}_{dims}d"]) for name in ("weight", "bias"))
    block = VectorFieldAttention(dims, weight.shape[1], weight.shape[0])
    block.project.load_state_dict({"weight": weight, "bias": bias})
    fixed, moving = (_tensor(arrays[f"in/block_{name}_{dims}d"], True) for name in ("fixed", "moving"))
    found = block(fixed, moving)
    (found * _tensor(arrays[f"in/block_cotangent_{dims}d"])).sum().backward()
    gradients = {"fixed": fixed, "moving": moving, "weight": block.project.weight, "bias": block.project.bias}
    results = {f"out/block_{dims}d": found.detach().numpy()}
    for name, x in gradients.items():
        assert x is not None and x.grad is not None
        results[f"grad/block_{name}_{dims}d"] = x.grad.numpy()
    return results


def _grid(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for dims in (2, 3):
        source, grid = (_tensor(arrays[f"in/{name}_{dims}d"], True) for name in ("source", "grid"))
        shape = grid.shape[2:]
        ddf = grid - identity_grid(shape)
        sampled = warp(source, ddf)
        (sampled * _tensor(arrays[f"in/cotangent_{dims}d"])).sum().backward()
        assert source.grad is not None and grid.grad is not None
        doubled = [2 * n for n in shape]
        enlarged = resize_ddf(ddf.detach(), doubled) + identity_grid(doubled)
        results |= {f"out/sampled_{dims}d": sampled.detach().numpy(), f"out/upsampled_{dims}d": enlarged.numpy()}
        results |= {f"grad/source_{dims}d": source.grad.numpy(), f"grad/grid_{dims}d": grid.grad.numpy()}
    points = sample_at(_tensor(arrays["in/grid_3d"]), _tensor(arrays["in/keypoints_3d"]), "zeros")
    return results | {"out/keypoints_3d": points[..., None, None].numpy()}


def _losses(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    arguments = meta["constructor"]
    multi = arguments["NCC_multi"]
    compared: dict[str, nn.Module] = {
        "NCC": _ncc(3, arguments["NCC"]),
        "NCC_multi": losses.MultiScaleLoss(
            [_ncc(3, {"window_size": multi["window_size"] - 2 * i}) for i in range(multi["scale"])]
        ),
        "MI": losses.MutualInformationLoss(bins=arguments["MI"]["f_num_bins"]),
        "MSE": nn.MSELoss(),
    }
    results: Arrays = {}
    for name, loss in compared.items():
        pred = _tensor(arrays["in/pred"], True)
        value = loss(pred, _tensor(arrays["in/target"]))
        value.backward()
        assert pred.grad is not None
        results |= {f"loss/{name}": value.detach().numpy(), f"grad/norm_{name}": pred.grad.norm().numpy()}
        if f"grad/{name}" in arrays:
            results[f"grad/{name}"] = pred.grad.numpy()
    ddf = _tensor(arrays["in/displacement"])
    fields = {"Grad": ddf, "Grad_2d": ddf[:, :2, :, :, 3]}
    results |= {f"loss/{name}": losses.GradientLoss()(field).numpy() for name, field in fields.items()}
    return results | {"loss/Bending": losses.BendingLoss()(ddf).numpy()}


OTHERS: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "attention": _attention,
    "grid": _grid,
    "losses": _losses,
}

# SPDX-License-Identifier: Apache-2.0
"""NePhi: encoder, field, losses, trajectories, auto-decoder, dense maps and made images of the published code.

All but the encoder of the published size computes in float64 here: gradients pass through sines of thirty times their
argument, twice, and what rounding does to them differs from machine to machine.
"""

from __future__ import annotations

from typing import Any

import layout
import numpy as np
import torch
from torch import Tensor, nn

from common import losses
from common.blocks.hybrid_code import HybridCode, HybridEncoder
from common.blocks.nephi import ModulatedField
from common.data.shapes2d import draw_pairs, draw_shapes, render
from common.networks.nephi import NePhi
from common.spatial import sample_at, warp
from common.weights.nephi import KEY_MAP
from common.weights.state_dicts import find_place, rename_keys

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    kind = next(kind for kind in CASES if meta["case"].startswith(kind))
    return CASES[kind](meta, arrays)


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    return tensor.double().requires_grad_(grad) if tensor.is_floating_point() else tensor


def _filled(meta: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    """The file's weights under our names."""
    official = layout.fill(meta["state_dict"], **meta["fill"])
    return rename_keys(
        {prefix + name: torch.from_numpy(np.array(values)) for name, values in official.items()}, KEY_MAP
    )


def _norms(meta: dict[str, Any], module: nn.Module, prefix: str = "", ours: str = "") -> np.ndarray:
    """Norm of the gradient of each official entry, NaN where it is no parameter or has none."""
    parameters, norms = dict(module.named_parameters()), []
    for name, *_ in meta["state_dict"]:
        parameter = parameters.get((find_place(prefix + name, KEY_MAP) or "").removeprefix(ours))
        norms.append(np.nan if parameter is None or parameter.grad is None else float(parameter.grad.norm()))
    return np.array(norms)


def _pair(arrays: Arrays) -> Tensor:
    """Moving and fixed image, the order of the published code."""
    return torch.cat([_tensor(arrays["in/image_A"]), _tensor(arrays["in/image_B"])], dim=1)


def _encoder(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given = meta["constructor"]
    encoder = HybridEncoder(
        given["data_shape"], given["enc_filters"], given["local_feature_layer_num"], given["latent_dim"]
    )
    state = _filled(meta, "encoder.")
    encoder.load_state_dict({name.removeprefix("codes."): value for name, value in state.items()})
    image, results = _pair(arrays), {}
    encoder.double().eval()
    codes = {"eval": encoder(image), "train": encoder.train()(image)}
    for mode, code in codes.items():
        results[f"out/{mode}_global"] = code.shared.detach().numpy()
        results[f"out/{mode}_local"] = code.local.detach().numpy()
    prior = losses.LatentLoss()(*codes["train"])
    total = codes["train"].shared.square().mean() + codes["train"].local.square().mean() + 0.01 * prior
    total.backward()
    results |= {"loss/prior": prior.detach().numpy(), "loss/total": total.detach().numpy()}
    results["out/bn_mean_0"] = dict(encoder.named_buffers())["trunk.0.norm.running_mean"].numpy()
    return results | {"grad/norms": _norms(meta, encoder, "encoder.", "codes.")}


def _field(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given = meta["constructor"]
    code = HybridCode(_tensor(arrays["in/global"], grad=True), _tensor(arrays["in/local"], grad=True))
    channels = code.shared.shape[1], code.local.shape[1]
    sizes = (given["hidden_features"], given["hidden_layers"], given["N_freqs"])
    field = ModulatedField(given["in_features"], channels, *sizes)
    field.load_state_dict({name.removeprefix("field."): value for name, value in _filled(meta, "phi.").items()})
    points = _tensor(arrays["in/points"])[None]
    displacement, jacobian = field.double().with_derivative(points, code)
    torch.testing.assert_close(field(points, code), displacement)
    energy = jacobian.square().mean()
    energy.backward()
    grid = torch.tensor(code.local.shape[2:])
    local = sample_at(code.local, ((points + 1) / 2 * (grid - 1)).expand(len(code.local), -1, -1)).mT
    latent = torch.cat([code.shared[:, None].expand(-1, local.shape[1], -1), local], dim=2)
    nodes = [code.shared * grid.prod(), code.local.flatten(2).sum(2)]
    outputs = {"latent": latent, "displacement": displacement, "jacobian": jacobian}
    results = {f"out/{name}": value.detach().numpy() for name, value in outputs.items()}
    results |= {"out/latent_nodes_sum": torch.cat(nodes, dim=1).detach().numpy()}
    results |= {"loss/reg_energy": energy.detach().numpy(), "grad/norms": _norms(meta, field, "phi.", "field.")}
    gradients = {"grad/global": code.shared.grad, "grad/local": code.local.grad}
    return results | {name: value.numpy() for name, value in gradients.items() if value is not None}


def _build(meta: dict[str, Any]) -> NePhi:
    given = meta["constructor"]
    field = given["field"]
    arguments = {
        "hidden": field["hidden_features"],
        "layers": field["hidden_layers"],
        "frequencies": field["N_freqs"],
    }
    if "encoder" in given:
        encoder = given["encoder"]
        arguments |= {"size": encoder["data_shape"], "channels": encoder["enc_filters"]}
        arguments |= {"local_level": encoder["local_feature_layer_num"], "latent": encoder["latent_dim"]}
    else:
        arguments |= {"size": [2 * n for n in given["local_shape"]], "channels": [1], "local_level": 0}
        arguments |= {"latent": given["local_dim"], "pairs": given["data_num"]}
    network = NePhi(field["in_features"], **arguments)
    network.load_state_dict(_filled(meta))
    return network


def _voxels(points: np.ndarray, size: Any) -> Tensor:
    """(N, d) in [-1, 1] to (1, N, d) in voxels."""
    return (_tensor(points)[None] + 1) / 2 * (torch.tensor(size) - 1)


def _normalised(points: Tensor, size: Any) -> np.ndarray:
    return (points / (torch.tensor(size) - 1) * 2 - 1).detach().numpy()


def _terms(network: NePhi, arrays: Arrays, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The published terms at the points of a step, and both maps at those of the similarity."""
    image, index = _pair(arrays), _tensor(arrays["in/idx"]) if "in/idx" in arrays else None
    moving, fixed = image[:, :1], image[:, 1:]
    size = image.shape[2:]
    out = network(image, ["map", "inverse_map", "latent", "local_latent"], index)
    there, back = out["map"], out["inverse_map"]
    similarity, consistency = losses.SampledLoss(losses.NCCLoss()), losses.JacobianConsistencyLoss()
    compared = [_voxels(points, size) for points in arrays["in/points_sim"][step]]
    kept = [_voxels(points, size) for points in arrays["in/points_reg"][step]]
    terms = {
        "sim": similarity.at(there, moving, fixed, compared[0]) + similarity.at(back, fixed, moving, compared[1]),
        "reg": consistency.at(there, back, fixed, kept[0]) + consistency.at(back, there, moving, kept[1]),
    }
    terms = {name: value / 2 for name, value in terms.items()}
    terms["prior"] = losses.LatentLoss()(out["latent"], out["local_latent"])
    maps = {"forward": there(compared[0]), "backward": back(compared[1])}
    return terms, {name: torch.from_numpy(_normalised(points, size)) for name, points in maps.items()}


def _loss(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, weights = _build(meta).double().train(), meta["constructor"]
    optimiser = torch.optim.SGD(network.parameters(), lr=meta["sgd_rate"])
    trajectory: list[float] = []
    results: Arrays = {}
    for step in range(len(arrays["traj/loss"])):
        terms, maps = _terms(network, arrays, step)
        total = terms["sim"] + weights["lamb"] * terms["reg"] + weights["prior_lamb"] * terms["prior"]
        optimiser.zero_grad()
        total.backward()
        if step == 0:
            results = {f"loss/{name}": value.detach().numpy() for name, value in (terms | {"total": total}).items()}
            results |= {f"out/map_{name}": value.numpy() for name, value in maps.items() if f"out/map_{name}" in arrays}
            results["grad/norms"] = _norms(meta, network)
            if "grad/global_rows" in arrays:
                rows = dict(network.named_parameters())["codes.shared"].grad
                assert rows is not None
                results["grad/global_rows"] = rows.norm(dim=1).numpy()
        optimiser.step()
        trajectory.append(total.item())
    return results | {"traj/loss": np.array(trajectory)}


def _register(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, image = _build(meta).double().eval(), _pair(arrays)
    with torch.no_grad():
        ddf = network(image)
    size = torch.tensor(image.shape[2:])
    grid = torch.stack(torch.meshgrid(*[torch.arange(int(n)) for n in size], indexing="ij"))[None]
    scale = (size - 1).view(1, -1, 1, 1, 1)
    labels = warp(_tensor(arrays["in/labels"]), ddf, mode="nearest", padding_mode="zeros").numpy().astype(np.uint8)
    # Labels at the middle between two voxels may fall on either: the file's notes allow so few.
    assert (labels != arrays["out/warped_labels"]).mean() <= 1e-3
    places = (grid + ddf)[0].movedim(0, -1)
    ends = places[1:, 1:, 1:]
    starts = places[:-1, 1:, 1:], places[1:, :-1, 1:], places[1:, 1:, :-1]
    folding = torch.linalg.det(torch.stack([ends - start for start in starts], dim=-1)) < 0
    return {
        "out/map": ((grid + ddf) / scale * 2 - 1).numpy(),
        "out/warped": warp(image[:, :1], ddf, padding_mode="zeros").numpy(),
        "out/warped_labels": labels,
        "out/folds_percent": 100 * folding.double().mean().numpy(),
    }


def _published(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, size = _build(meta).eval(), meta["constructor"]["encoder"]["data_shape"]
    image = torch.from_numpy(np.stack([layout.blobs(size, int(seed)) for seed in arrays["in/image_seeds"]]))[None]
    with torch.no_grad():
        code = network.code(image)
        there, back = network.double().maps(HybridCode(code.shared.double(), code.local.double()), size)
        points = _voxels(arrays["in/points"], size)
        maps = [_normalised(function(points), size) for function in (there, back)]
    channels = code.local[0].flatten(1).double()
    return {
        "out/global": code.shared.numpy(),
        "out/local_shape": np.array(code.local.shape),
        "out/local_stats": torch.stack([channels.mean(1), channels.std(1)], dim=1).numpy(),
        "out/map_forward": maps[0],
        "out/map_backward": maps[1],
        "out/prior": losses.LatentLoss()(*code).numpy(),
    }


def _shapes(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given = meta["constructor"]
    # The generator that the published set is drawn with, which numpy calls old and keeps as it is.
    random = np.random.RandomState(int(arrays["in/seed"]))  # noqa: NPY002
    shapes = draw_shapes(random, given["samples"])
    return {
        "out/params": np.stack(shapes, axis=1),
        "out/filled": render(shapes, given["data_size"])[:, None],
        "out/hollow": render(shapes, given["data_size"], hollow=True)[:, None],
        "out/pair_list": draw_pairs(random, given["samples"], given["total_num"]),
    }


CASES = {
    "encoder": _encoder,
    "field": _field,
    "loss": _loss,
    "autodecoder": _loss,
    "register": _register,
    "published": _published,
    "triangles": _shapes,
}

# SPDX-License-Identifier: Apache-2.0
"""EOIR: networks, training recipes, operations, losses, data and metrics of the published code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import layout
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import losses, metrics
from common.blocks.eoir import block
from common.data import prepare_abdomen
from common.io.learn2reg import to_half_resolution
from common.losses.pyramid import PUBLISHED_SIGMAS, blur_taps
from common.networks.eoir import EOIR
from common.spatial import compose, integrate, jacobian_determinant, warp
from common.weights.eoir import KEY_MAP, OASIS_KEY_MAP
from common.weights.state_dicts import rename_keys

Arrays = dict[str, np.ndarray]
VARIANTS = {"EOIR": "plain", "EOIR_ACDC": "acdc", "EOIR_OASIS": "oasis"}
# Loss terms of the published training scripts: similarity windows per level (None: mean squared error), penalty of the
# smoothness, weights of similarity, smoothness and overlap as they effectively are.
RECIPES: dict[str, dict[str, Any]] = {
    "lumir": {"windows": [9] * 5, "penalty": "l2", "weights": (1, 5, 0)},
    "abdomen": {"windows": [9, 5, 3, 3, 3], "penalty": "l1", "weights": (1, 1, 1)},
    "oasis": {"windows": [9, 5, 3, 3], "penalty": "l1", "weights": (1, 1, 1)},
    "acdc": {"windows": None, "penalty": "l1", "weights": (1, 1e-4, 0)},
}


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    kind, constructor = meta["kind"], meta["constructor"]
    if kind == "network":
        return _network(meta, arrays)
    if kind == "loss" and constructor.get("name") in VARIANTS:
        return _training(meta, arrays)
    name = constructor.get("name", "blocks")
    return OTHERS[name](meta, arrays)


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _build(meta: dict[str, Any]) -> tuple[EOIR, list[tuple[str, str | None]]]:
    """The network with the file's weights, and [official name, our name] of each entry of the official state dict."""
    arguments = meta["constructor"]
    variant: Any = VARIANTS[arguments["name"]]
    key_map = OASIS_KEY_MAP if variant == "oasis" else KEY_MAP
    integrates = int(arguments.get("is_int", 0 if variant == "oasis" else 1))
    network = EOIR(
        variant=variant,
        start_channel=int(arguments["start_channel"]),
        int_steps=7 if integrates else 0,
        kernel_size=int(arguments.get("lk_size", 5)),
        search_radius=int(arguments.get("cv_ks", 1)),
    )
    official = layout.fill(meta["state_dict"], **meta["fill"])
    network.load_state_dict(rename_keys({name: _tensor(values) for name, values in official.items()}, key_map))
    ours: dict[str, str | None] = {official_name: None for official_name in official}
    for official_name in official:
        ours[official_name] = next(iter(rename_keys({official_name: None}, key_map)), None)
    return network, list(ours.items())


def _strided(name: str, value: Tensor, channels: bool = False) -> np.ndarray:
    """``NAME_sN`` holds every N-th element along each spatial axis, of features along the channels as well."""
    match = re.search(r"_s(\d+)$", name)
    step = int(match[1]) if match else 1
    axes = (slice(None), slice(None, None, step) if channels else slice(None))
    return value.detach().numpy()[(*axes, *(slice(None, None, step) for _ in range(value.ndim - 2)))]


def _statistics(value: Tensor) -> np.ndarray:
    values = value.detach().double()
    return torch.stack([values.mean(), values.std(correction=0), values.abs().max()]).numpy()


def _network(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, _ = _build(meta)
    moving, fixed = _tensor(arrays["in/x"]), _tensor(arrays["in/y"])
    with torch.no_grad():
        outputs = network(torch.cat([moving, fixed], dim=1), details=True)
        available = {f"int_flow_{i}": v for i, v in enumerate(outputs["velocity"])}
        available |= {f"pos_flow_{i}": d for i, d in enumerate(outputs["pyramid"])}
        available["warped"] = warp(moving, outputs["pyramid"][0], padding_mode="zeros")
        available["features"] = torch.cat([network.encoder(moving), network.encoder(fixed)])
    results: Arrays = {}
    for name in arrays:
        kind, _, rest = name.partition("/")
        value = available.get(re.sub(r"_s\d+$", "", rest))
        if kind == "out" and value is not None:
            results[name] = _strided(rest, value, channels=rest.startswith("features"))
        elif kind == "stat" and value is not None:
            results[name] = _statistics(value)
    return results


def _recipe(meta: dict[str, Any], levels: int) -> losses.RegistrationLoss:
    name = re.search(r"Recipe '(\w+)'", meta["notes"])
    assert name is not None
    recipe = RECIPES[name[1]]
    similarity: Any = nn.MSELoss()
    if recipe["windows"]:
        similarity = [losses.LNCCLoss(kernel_size=window) for window in recipe["windows"]]
    terms = {
        "sim": losses.Term(similarity, ["warped", "fixed"], recipe["weights"][0]),
        "reg": losses.Term(losses.GradientLoss(recipe["penalty"]), ["velocity"], recipe["weights"][1]),
    }
    if recipe["weights"][2]:
        dice = losses.WarpedDiceLoss(meta["num_classes"])
        terms["dsc"] = losses.Term(dice, ["moving_label", "fixed_label", "ddf"], recipe["weights"][2])
    in_plane: dict[str, Any] = {"kernel": "isotropic", "axes": (0, 1)} if name[1] == "acdc" else {}
    pyramid = losses.ImagePyramid(num_classes=meta["num_classes"] or None, **in_plane)
    return losses.RegistrationLoss(terms, [0.5**i for i in range(levels)], pyramid)


def _training(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, names = _build(meta)
    loss = _recipe(meta, len(network.estimators))
    moving, fixed = _tensor(arrays["in/x"], grad=True), _tensor(arrays["in/y"], grad=True)
    targets = {"moving": moving, "fixed": fixed}
    if "in/x_seg" in arrays:
        targets |= {"moving_label": _tensor(arrays["in/x_seg"]), "fixed_label": _tensor(arrays["in/y_seg"])}
    outputs = network(torch.cat([moving, fixed], dim=1), details=True)
    total = loss(outputs, targets)
    results = {"loss/total": total.detach().numpy()}
    results |= {f"loss/{name}": np.asarray(value) for name, value in loss.terms_of_last_call().items()}
    results |= dict(_level_terms(loss, outputs, targets))
    total.backward()
    results |= _gradients(network, names, arrays)
    for axis, image in (("x", moving), ("y", fixed)):
        assert image.grad is not None
        results |= {f"grad/{axis}_s3": _strided("_s3", image.grad), f"stat/grad_{axis}": _statistics(image.grad)}
    return results | _trajectories(meta, targets)


def _level_terms(loss: losses.RegistrationLoss, outputs: Any, targets: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Each level's terms: the same loss with the weights of all other levels at zero."""
    levels = loss.level_weights
    for level, weight in enumerate(levels):
        loss.level_weights = tuple(weight if i == level else 0.0 for i in range(len(levels)))
        with torch.no_grad():
            loss(outputs, targets)
        for name, value in loss.terms_of_last_call().items():
            yield f"loss/{name}_{level}", np.asarray(value)
    loss.level_weights = levels


def _gradients(network: nn.Module, names: list[tuple[str, str | None]], arrays: Arrays) -> Arrays:
    parameters = dict(network.named_parameters())
    gradients = {official: None if own is None else parameters[own].grad for official, own in names}
    norms = [np.nan if gradient is None else float(gradient.norm()) for gradient in gradients.values()]
    results = {"grad/norms": np.array(norms)}
    for official, gradient in gradients.items():
        if f"grad/{official}" in arrays and gradient is not None:
            results[f"grad/{official}"] = gradient.numpy()
    return results


def _trajectories(meta: dict[str, Any], targets: dict[str, Tensor]) -> Arrays:
    rates = [float(rate) for rate in re.findall(r"rate ([\d.e-]+\d)", meta["notes"])]
    steps = int(re.search(r"each of (\d+) steps", meta["notes"])[1])  # type: ignore[index]
    optimisers: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "traj/loss": lambda parameters: torch.optim.SGD(parameters, lr=rates[0]),
        "traj/loss_adam": lambda parameters: torch.optim.Adam(parameters, lr=rates[1], amsgrad=True),
    }
    pair = {name: value.detach() for name, value in targets.items()}
    results: Arrays = {}
    for name, make in optimisers.items():
        network, _ = _build(meta)
        loss, optimiser = _recipe(meta, len(network.estimators)), make(network.parameters())
        values = []
        for _ in range(steps):
            total = loss(network(torch.cat([pair["moving"], pair["fixed"]], dim=1), details=True), pair)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            values.append(total.item())
        results[name] = np.array(values)
    return results


def _blocks(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for name, arguments in meta["constructor"].items():
        module = block(3, arguments["in_cs"], arguments["out_cs"], arguments["kernel_size"])
        official = layout.fill(meta["state_dict"][name], **meta["fill"])
        prefixed = {f"simple_encoder.0.{key}": _tensor(values) for key, values in official.items()}
        renamed = rename_keys(prefixed, KEY_MAP)
        module.load_state_dict({key.removeprefix("encoder.0."): value for key, value in renamed.items()})
        x = _tensor(arrays[f"in/{name}/x"], grad=True)
        out = module(x)
        (out * _tensor(arrays[f"in/{name}/cotangent"])).sum().backward()
        parameters = dict(module.named_parameters())
        norms = [parameters[key.removeprefix("encoder.0.")].grad.norm() for key in renamed]  # type: ignore[union-attr]
        results |= {f"out/{name}": out.detach().numpy(), f"grad/{name}/norms": torch.stack(norms).numpy()}
        assert x.grad is not None
        results[f"grad/{name}/x"] = x.grad.numpy()
    return results


def _warp(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    source, flow = _tensor(arrays["in/src"], grad=True), _tensor(arrays["in/flow"], grad=True)
    linear = warp(source, flow, padding_mode="zeros")
    (linear * _tensor(arrays["in/cotangent"])).sum().backward()
    nearest = warp(_tensor(arrays["in/labels"]), flow.detach(), mode="nearest", padding_mode="zeros")
    assert source.grad is not None and flow.grad is not None
    results = {"out/linear": linear.detach(), "out/nearest": nearest, "grad/src": source.grad, "grad/flow": flow.grad}
    return {name: value.numpy() for name, value in results.items()}


def _integration(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    velocity = _tensor(arrays["in/velocity"], grad=True)
    ddf = integrate(velocity, steps=meta["constructor"]["nsteps"])
    (ddf * _tensor(arrays["in/cotangent"])).sum().backward()
    assert velocity.grad is not None
    return {"out/displacement": ddf.detach().numpy(), "grad/velocity": velocity.grad.numpy()}


def _composition(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    coarse, residual = _tensor(arrays["in/coarse"], grad=True), _tensor(arrays["in/residual"], grad=True)
    in_plane = meta["constructor"]["scale_factor"] == [2, 2, 1]
    up = EOIR(variant="acdc" if in_plane else "plain", start_channel=1)._doubled(coarse)
    total = compose(up, residual, padding_mode="zeros")
    (total * _tensor(arrays["in/cotangent"])).sum().backward()
    assert coarse.grad is not None and residual.grad is not None
    results = {"out/up": up.detach(), "out/total": total.detach(), "grad/coarse": coarse.grad}
    return {name: value.numpy() for name, value in results.items()} | {"grad/residual": residual.grad.numpy()}


def _pyramid(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    image = _tensor(arrays["in/image"])
    levels = losses.image_pyramid(image, meta["constructor"]["n_downs"] + 1)
    results = {f"out/level_{i}": level.numpy() for i, level in enumerate(levels) if i}
    taps = [blur_taps(sigma).float() for sigma in PUBLISHED_SIGMAS]
    kernel = torch.einsum("i,j,k->ijk", *taps)[None, None]
    blurred = F.conv3d(image, kernel, padding=kernel.shape[-1] // 2)
    return results | {"out/kernel": kernel.numpy(), "out/blurred_s2": _strided("_s2", blurred)}


def _ncc(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for window in (9, 5, 3):
        a, b = _tensor(arrays["in/a"], grad=True), _tensor(arrays["in/b"], grad=True)
        value = losses.LNCCLoss(kernel_size=window)(a, b)
        value.backward()
        assert a.grad is not None and b.grad is not None
        results[f"loss/ncc_{window}"] = value.detach().numpy()
        results |= {f"grad/a_{window}": a.grad.numpy(), f"grad/b_{window}": b.grad.numpy()}
    a, b = _tensor(arrays["in/a"]), _tensor(arrays["in/b"])
    loss = losses.LNCCLoss(kernel_size=9)
    results["loss/ncc_9_batch3"] = loss(torch.cat([a, b, (a + b) / 2]), torch.cat([b, a, a])).numpy()
    results["loss/ncc_9_small"] = loss(a[..., :5, :6, :5], b[..., :5, :6, :5]).numpy()
    return results


def _gradient(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for penalty in ("l1", "l2"):
        flow = _tensor(arrays["in/flow"], grad=True)
        value = losses.GradientLoss(penalty)(flow)
        value.backward()
        assert flow.grad is not None
        results |= {f"loss/{penalty}": value.detach().numpy(), f"grad/{penalty}": flow.grad.numpy()}
    return results


def _dice(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    classes = arrays["in/prediction"].shape[1]
    labels = _tensor(arrays["in/labels"])
    one_hot = F.one_hot(labels[:, 0].long(), classes).movedim(-1, 1).float()
    results: Arrays = {}
    for name, squared in (("binary", False), ("dice", False), ("dice_squared", True)):
        prediction = _tensor(arrays["in/prediction"], grad=True)
        value = losses.SoftDiceLoss(squared=squared)(prediction, one_hot)
        value.backward()
        assert prediction.grad is not None
        results |= {f"loss/{name}": value.detach().numpy(), f"grad/{name}": prediction.grad.numpy()}
    emptied = one_hot.clone()
    emptied[:, -1] = 0
    results["loss/binary_absent"] = losses.SoftDiceLoss()(emptied, emptied).numpy()
    return results


def _oasis_submission(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    ddf = arrays["in/flow"][0]
    half = to_half_resolution(ddf, mode="constant", dtype=np.float32)
    return {"out/displacement": ddf, "out/half": half, "out/half_f16": half.astype(np.float16)}


def _abdomen(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    image, labels = prepare_abdomen(arrays["in/hu"], arrays["in/labels"])
    assert labels is not None
    return {"out/image": image, "out/labels": labels}


def _metrics(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    ddf = _tensor(arrays["in/displacement"]).double()
    spacing = [round(float(size), 6) for size in arrays["in/spacing"]]
    fixed, moving, warped = (_tensor(arrays[f"in/{name}"])[None, None] for name in ("fixed", "moving", "warped"))
    labels = range(1, int(fixed.max()) + 1)
    lacking = warped.clone()
    lacking[lacking == labels[-1]] = 0

    def hd95(candidate: Tensor) -> np.ndarray:
        values = metrics.hd95_l2r(candidate, fixed, labels, moving, spacing, vanished="moving")
        return metrics.mean_over_labels(values)[0].numpy()

    def dice_voi() -> np.ndarray:
        listed = torch.tensor([0, 4, 11, 23, 207], dtype=torch.int16)
        every = _lumir_labels()
        return metrics.dice_voi(listed[warped.long()], listed[fixed.long()], every).mean().numpy()

    statistics = metrics.jacobian_statistics(ddf, clip=1e-8)
    return {
        "out/jacobian": jacobian_determinant(ddf)[0, 0, 2:-2, 2:-2, 2:-2].numpy(),
        "loss/folding_fraction": statistics.fold_fraction_interior[0].numpy(),
        "loss/sdlogj": statistics.sdlogj_l2r[0].numpy(),
        "out/dice_per_class": metrics.dice_voi(warped, fixed, labels)[0].numpy(),
        "loss/dice": metrics.dice_voi(warped, fixed, labels).mean().numpy(),
        "loss/dice_absent": metrics.dice_voi(lacking, fixed, labels).mean().numpy(),
        "loss/hd95": hd95(warped),
        "loss/hd95_absent": hd95(lacking),
        "loss/hd95_initial": hd95(moving),
        "loss/dice_voi": dice_voi(),
    }


def _lumir_labels() -> list[int]:
    """The 133 label values of the LUMIR evaluation, background included."""
    text = "0,4,11,23,30-32,35-41,44,45,47-52,55-62,71-73,75,76,100-109,112-125,128,129,132-157,160-187,190-207"
    bounds = [[int(n) for n in part.split("-")] for part in text.split(",")]
    return [value for first, *last in bounds for value in range(first, (last or [first])[0] + 1)]


OTHERS: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "blocks": _blocks,
    "SpatialTransformer": _warp,
    "VecInt": _integration,
    "dispWarp": _composition,
    "get_downsampled_images": _pyramid,
    "NccLoss": _ncc,
    "Grad3d": _gradient,
    "BinaryDiceLoss": _dice,
    "test_registration_OASIS": _oasis_submission,
    "abdomenreg_loader": _abdomen,
    "metrics": _metrics,
}

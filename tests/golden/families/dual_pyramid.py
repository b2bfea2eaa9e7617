# SPDX-License-Identifier: Apache-2.0
"""The dual-pyramid networks and their training, and the operations and losses of their published code.

Networks compute in float64 here. The derivative of a warp jumps at voxel centres, and in float32 rounding decides on
which side a displacement ends; without rounding the published numbers come out.
``tests/common/networks/test_dual_pyramid.py`` compares float32 with float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import layout
import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from common import losses
from common.blocks.correlation import local_correlation, reversed_correlation
from common.blocks.correlation_lines import PaddingMode
from common.blocks.dual_pyramid import Encoder
from common.engine.schedules import schedule_handler
from common.networks import DualPyramid
from common.spatial import bspline_field, compose, invert_contraction, resize_image, warp
from common.spatial.fixed_point import SOLVERS
from common.weights.dual_pyramid import key_map
from common.weights.state_dicts import KeyMap, rename_keys

Arrays = dict[str, np.ndarray]
RATE = 0.02
# Published (decoder, features added) to ours.
VARIANTS: dict[tuple[str, str | None], str] = {
    ("pyramidal_cnn_std", None): "conv_mf",
    ("pyramidal_cnn_std", "corr"): "conv_mfc",
    ("pyramidal_cnn_std", "corronly"): "conv_c",
    **{("pyramidal_cnn_std", name): f"conv_{name}" for name in ("diff", "diffonly", "diffsum")},
    ("pyramidal_cnn_sitreg", None): "convic_mf",
    ("pyramidal_cnn_sitreg", "corronly"): "convic_c",
    ("pyramidal_cnn_sitreg", "diffsum"): "convic_diffsum",
    ("pyramidal_vfa_std", None): "vfa",
}
PUBLISHED = {
    "convolutions": 2,
    "skip": True,
    "groups": None,
    "activation": "leaky_relu",
    "slope": 0.2,
    "pooled": False,
    "separable": False,
}


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    case = meta["case"]
    if "decoder" in meta["constructor"]:
        return _network(meta, arrays)
    return CASES[case](meta, arrays) if case in CASES else {}


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _leaf(array: np.ndarray) -> Tensor:
    """An input without rounding, whose gradient is asked for."""
    return _tensor(array).double().requires_grad_()


def _load(module: nn.Module, meta: dict[str, Any], keys: KeyMap, beginning: str = "") -> list[str]:
    """Give a module the file's weights; returns our name of each entry of the file."""
    official = {name: _tensor(values) for name, values in layout.fill(meta["state_dict"], **meta["fill"]).items()}
    ours = {name.removeprefix(beginning): value for name, value in rename_keys(official, keys).items()}
    module.load_state_dict(ours)
    return list(ours)


def _norms(module: nn.Module, names: Sequence[str]) -> np.ndarray:
    parameters = dict(module.named_parameters())
    gradients = [parameters[name].grad for name in names]
    return np.array([np.nan if gradient is None else float(gradient.norm()) for gradient in gradients])


def _statistics(values: Tensor) -> np.ndarray:
    channels = values.detach().double().movedim(1, 0).flatten(1)
    rows = [channels.mean(1), channels.std(1), channels.amin(1), channels.amax(1), channels.norm(dim=1)]
    return torch.stack(rows).numpy()


def _strided(values: Tensor, like: np.ndarray) -> np.ndarray:
    array = values.detach().numpy()
    array = array[..., ::2, 1::2, :] if values.ndim == 5 else array
    return array.reshape(-1)[::97] if like.ndim == 1 else array


def _block(given: dict[str, Any]) -> dict[str, Any] | None:
    """Options of blocks that are not the published ones."""
    if "act_name" not in given:
        return None
    activation, slope = given["act_name"]
    norm, groups = given.get("norm_name", ("group", {"num_groups": 4}))
    kind = given.get("block_type", "")
    options = {
        "convolutions": given["n_convolutions"],
        "skip": given["res_skip"],
        "groups": None if norm == "instance" else groups["num_groups"],
        "activation": activation.lower().replace("leaky", "leaky_"),
        "slope": slope.get("negative_slope", 0.01),
        "pooled": "maxpool" in kind,
        "separable": "depthpoint" in kind,
    }
    return None if options == PUBLISHED else options


def _build(meta: dict[str, Any]) -> tuple[DualPyramid, list[str]]:
    given = meta["constructor"]
    encoder, decoder = given["encoder"], given["decoder"]
    features = decoder.get("add_feat") or {"name": None}
    hidden = decoder.get("n_features_per_level", decoder.get("n_attention_per_level"))
    attention = {"cosine": decoder.get("similarity") == "cosine", "temperature": decoder.get("temperature")}
    tight = given.get("solver", {}).get("forward_max_abs_threshold", 1) < 1e-2
    network = DualPyramid(
        len(given["img_size"]),
        variant=VARIANTS[decoder["decoder_type"], features["name"]] + ("_flip" if features.get("flip") else ""),
        channels=encoder["n_features_per_level"],
        decoder_channels=hidden,
        padding_mode="border" if features.get("type") == "vfa" else "zeros",
        attention=attention,
        encoder_block=_block(encoder),
        decoder_block=_block(decoder),
        solver="tight" if tight else "default",
    )
    names = _load(network, meta, key_map(network.arguments))
    # Convolutions of float64 take half the time so.
    # torch documents this form of `to`, its annotations lack it.
    return network.to(torch.float64, memory_format=torch.contiguous_format), names  # type: ignore[call-overload]


def _images(meta: dict[str, Any], arrays: Arrays) -> dict[str, Tensor]:
    if "in/moving" in arrays:
        return {name: _leaf(arrays[f"in/{name}"]) for name in ("moving", "fixed")}
    size = meta["constructor"]["img_size"]
    made = re.findall(r"(moving|fixed) = blobs\(.*?\), (\d+)\)", " ".join(meta["notes"]))
    return {name: _leaf(layout.blobs(size, int(seed))[None, None]) for name, seed in made}


def _ncc(dims: int, window: int = 9, guard: str = "max") -> nn.Module:
    return losses.LNCCLoss(dims, window, eps=2.0**-23, statistics="mean", guard=guard)


def _loss(network: DualPyramid) -> losses.RegistrationLoss:
    """Of both directions alike where the network has both."""
    sides = [("", "warped", "fixed", "ddf"), ("_back", "warped_back", "moving", "inverse_ddf")]
    sides = sides if network.variant.symmetric else sides[:1]
    terms = {}
    for name, warped, target, field in sides:
        terms[f"similarity{name}"] = losses.Term(_ncc(network.spatial_dims), [warped, target], 1 / len(sides))
        terms[f"regularisation{name}"] = losses.Term(losses.GradientLoss(), [field], 1 / len(sides))
    return losses.RegistrationLoss(terms, padding_mode="border")


def _network(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, names = _build(meta)
    images, loss = _images(meta, arrays), _loss(network)
    outputs = network(torch.cat([images["moving"], images["fixed"]], dim=1), details=loss.details)
    total = loss(outputs, images)
    total.backward()
    terms = loss.terms_of_last_call()
    results = {"loss/total": total.detach().numpy(), "grad/norms": _norms(network, names)}
    for name in ("similarity", "regularisation"):
        results[f"loss/{name}"] = np.mean([value for term, value in terms.items() if term.startswith(name)])
    for name, side, field in (("moving", "forward", "ddf"), ("fixed", "inverse", "inverse_ddf")):
        gradient = images[name].grad
        assert gradient is not None
        results[f"grad/norm_in_{name}"] = gradient.norm().numpy()
        if field in outputs:
            results[f"out/stats_warped_{name}"] = _statistics(warp(images[name], outputs[field]))
            results[f"out/stats_disp_{side}"] = _statistics(outputs[field])
            results[f"out/disp_{side}"] = _strided(outputs[field], arrays[f"out/disp_{side}"])
    return results | _trajectory(network, loss, images, arrays)


def _trajectory(
    network: DualPyramid, loss: losses.RegistrationLoss, images: dict[str, Tensor], arrays: Arrays
) -> Arrays:
    if "traj/loss" not in arrays:
        return {}
    optimizer = torch.optim.SGD(network.parameters(), lr=RATE)
    pair = {name: image.detach() for name, image in images.items()}
    values = []
    for _ in arrays["traj/loss"]:
        optimizer.zero_grad()
        total = loss(network(torch.cat([pair["moving"], pair["fixed"]], dim=1), details=loss.details), pair)
        values.append(total.item())
        total.backward()
        optimizer.step()
        if not network.variant.symmetric:
            pair = {"moving": pair["fixed"], "fixed": pair["moving"]}
    return {"traj/loss": np.array(values)}


def _encoder(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    channels, image = meta["constructor"]["n_features_per_level"], _tensor(arrays["in/image"], grad=True)
    block = _block(meta["constructor"])
    arguments = {"variant": "conv_mf", "channels": channels, "encoder_block": block}
    encoder = Encoder(image.ndim - 2, channels, block)
    keys = {
        pattern.replace(r"^feature_encoder\.encoder\.", r"^(?:feature_encoder\.)?(?:encoder\.)?"): name
        for pattern, name in key_map(arguments).items()
    }
    names = _load(encoder, meta, keys, "encoder.")
    levels = encoder(image)
    torch.stack([i * (level**2).mean() for i, level in enumerate(levels, start=1)]).sum().backward()
    assert image.grad is not None
    results = {"grad/norms": _norms(encoder, names), "grad/image_norm": image.grad.norm().numpy()}
    for i, level in enumerate(levels):
        stored = arrays[f"out/level{i}"]
        # The finest one alone is strided.
        results[f"out/level{i}"] = level.detach().numpy() if stored.shape == level.shape else _strided(level, stored)
    return results


def _correlation(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    paddings: dict[str, PaddingMode] = {"zero": "zeros", "replicate": "border"}
    results: Arrays = {}
    for kind in (name.removeprefix("in/cotangent_") for name in arrays if name.startswith("in/cotangent_")):
        dims, radius = kind[:2], int(kind[-1])
        cotangent = _tensor(arrays[f"in/cotangent_{kind}"])
        for padding, padding_mode in paddings.items():
            images = {name: _tensor(arrays[f"in/{name}_{dims}"], grad=True) for name in ("fixed", "moving")}
            found = local_correlation(images["fixed"], images["moving"], radius, padding_mode)
            gradients = torch.autograd.grad((found * cotangent).sum(), [*images.values()])
            results[f"out/{padding}_{kind}"] = found.detach().numpy()
            for name, gradient in zip(images, gradients, strict=True):
                results[f"grad/{name}_{padding}_{kind}"] = gradient.numpy()
            reverse = f"out/reverse_{padding}_{kind}"
            if reverse in arrays:
                results[reverse] = reversed_correlation(found.detach(), radius, padding_mode).numpy()
    return results


def _inversion(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    ddf = _tensor(arrays["in/displacement"], grad=True)
    tight = meta["constructor"]["forward"]["threshold"] < 1e-2
    inverse = invert_contraction(ddf, SOLVERS["tight" if tight else "default"])
    (gradient,) = torch.autograd.grad((inverse * _tensor(arrays["in/cotangent"])).sum(), ddf)
    return {"out/inverse": inverse.detach().numpy(), "grad/displacement": gradient.numpy()}


def _bspline(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for factor in meta["constructor"]["factors"]:
        control = _tensor(arrays[f"in/control_points_x{factor}"], grad=True)
        cotangent = _tensor(arrays[f"in/cotangent_x{factor}"])
        field = bspline_field(control, cotangent.shape[2:], factor)
        (gradient,) = torch.autograd.grad((field * cotangent).sum(), control)
        results[f"out/displacement_x{factor}"] = field.detach().numpy()
        results[f"grad/control_points_x{factor}"] = gradient.numpy()
    return results


def _warps(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    names = ("image", "u1", "u2", "coarse", "cotangent")
    image, u1, u2, coarse, cotangent = (_tensor(arrays[f"in/{name}"]) for name in names)

    def gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        return torch.autograd.grad((function(at) * cotangent.to(at.dtype)).sum(), at)[0]

    def resized(x: Tensor) -> Tensor:
        return 2 * resize_image(x, u1.shape[2:])

    exact = image.double(), u1.double()
    nearest = _either_side(lambda u: warp(exact[0], u, "nearest"), u1, arrays["out/warp_nearest"])
    by_u1 = _either_side(lambda u: gradient(lambda u: warp(exact[0], u), u), u1, arrays["grad/warp_u1"])
    by_u2 = _either_side(lambda u: gradient(lambda u: compose(exact[1], u), u), u2, arrays["grad/compose_u2"])
    return {
        "out/warp": warp(image, u1).numpy(),
        "out/warp_nearest": nearest,
        "out/compose": compose(u1, u2).numpy(),
        "out/resize": resized(coarse).numpy(),
        "grad/image": gradient(lambda x: warp(x, u1), image).numpy(),
        "grad/warp_u1": by_u1,
        "grad/compose_u1": gradient(lambda x: compose(x, u2), u1).numpy(),
        "grad/compose_u2": by_u2,
        "grad/coarse": gradient(resized, coarse).numpy(),
    }


def _either_side(function: Callable[[Tensor], Tensor], ddf: Tensor, stored: np.ndarray) -> np.ndarray:
    """What jumps where displacements end at voxel centres, or midway: of both sides that which the file has."""
    before, after = (function(ddf.double() + step).numpy() for step in (-1e-9, 1e-9))
    return np.where(np.abs(before - stored) < np.abs(after - stored), before, after)


def _losses(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    window = meta["constructor"]["window"]
    results: Arrays = {}
    for dims in (2, 3):
        pred, target = _tensor(arrays[f"in/pred_{dims}d"], grad=True), _tensor(arrays[f"in/target_{dims}d"])
        value = _ncc(dims, window)(pred, target)
        (gradient,) = torch.autograd.grad(value, pred)
        results |= {f"loss/ncc_{dims}d": value.detach().numpy(), f"grad/ncc_{dims}d": gradient.numpy()}
        others = {"ncc_fast": _ncc(dims, window, guard="add"), "ncc_window5": _ncc(dims, 5)}
        results |= {f"loss/{name}_{dims}d": loss(pred, target).detach().numpy() for name, loss in others.items()}
    ddf = _tensor(arrays["in/displacement"], grad=True)
    value = losses.GradientLoss()(ddf)
    (gradient,) = torch.autograd.grad(value, ddf)
    return results | {"loss/diffusion": value.detach().numpy(), "grad/diffusion_norm": gradient.norm().numpy()}


def _schedule(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Rates of the updates, of one pair each and of two."""
    published = meta["constructor"]
    results: Arrays = {}
    for pairs in (1, 2):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=published["lr"])
        restarts = {name: published[name] for name in ("T_0", "T_mult", "eta_min")}
        step = schedule_handler(torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, **restarts))
        engine = Engine(lambda engine, batch: None)
        engine.state.epoch_length = published["pairs_per_epoch"] // pairs
        updates, rates = arrays[f"out/update_index_step{pairs}"], []
        optimizer.step()
        for engine.state.iteration in range(1, int(updates.max()) + 2):
            rates.append(optimizer.param_groups[0]["lr"])
            step(engine)
        results |= {f"out/update_index_step{pairs}": updates, f"f64/lr_step{pairs}": np.array(rates)[updates]}
    return results


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "bspline_upsample": _bspline,
    "correlation": _correlation,
    "cosine_schedule": _schedule,
    "encoder": _encoder,
    "inversion": _inversion,
    "inversion_tight": _inversion,
    "losses": _losses,
    "warp_compose_resize": _warps,
}

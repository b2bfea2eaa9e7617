# SPDX-License-Identifier: Apache-2.0
"""SITReg: networks, single updates, operations and losses of the published code."""

from __future__ import annotations

from typing import Any

import layout
import numpy as np
import torch
from torch import Tensor, nn

from common import losses, metrics
from common.blocks.sitreg import UpdateExtraction
from common.losses.masked import INSIDE
from common.networks.sitreg import MULTIPLIER, SITReg
from common.spatial import bspline_bound, bspline_field, compose, invert_contraction, warp
from common.spatial.fixed_point import SOLVERS, Solver, anderson, solve_inverse
from common.spatial.symmetric import Halves, advance
from common.weights.sitreg import KEY_MAP, KEY_MAP_2023
from common.weights.state_dicts import rename_keys

Arrays = dict[str, np.ndarray]


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    case = meta["case"]
    for beginning, function in CASES.items():
        if case.startswith(beginning):
            return function(meta, arrays)
    return {}


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _solver(meta: dict[str, Any]) -> str:
    return "tight" if meta["constructor"]["solver"]["forward"]["threshold"] < 1e-2 else "default"


def _bspline(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for dims in (3, 2):
        cotangent = _tensor(arrays[f"in/cotangent{dims}d"])
        for factor in meta["constructor"]["factors"]:
            control = _tensor(arrays[f"in/c{dims}d_f{factor}"], grad=True)
            field = bspline_field(control, cotangent.shape[2:], factor)
            (gradient,) = torch.autograd.grad((field * cotangent).sum(), control)
            results |= {f"out/u{dims}d_f{factor}": field.detach().numpy(), f"grad/c{dims}d_f{factor}": gradient.numpy()}
        bounds = [bspline_bound((int(factor),) * dims) for factor in arrays["out/bound_factors"]]
        results[f"f64/bound{dims}d"] = np.array(bounds)
    extra = [bspline_bound(tuple(map(int, factors))) for factors in arrays["out/bound_extra_factors"]]
    named = {name: arrays[name] for name in ("out/bound_factors", "out/bound_extra_factors")}
    return results | named | {"f64/bound_extra": np.array(extra)}


def _inversion(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for name, solver in SOLVERS.items():
        for dims in (3, 2):
            ddf, cotangent = _tensor(arrays[f"in/d{dims}d"], grad=True), _tensor(arrays[f"in/cotangent{dims}d"])
            inverse = invert_contraction(ddf, solver)
            (gradient,) = torch.autograd.grad((inverse * cotangent).sum(), ddf)
            forward = solve_inverse(ddf.detach(), solver)
            backward = _published_backward(ddf.detach(), forward.value, cotangent, meta["constructor"]["solver"][name])
            results |= {
                f"out/{name}/u{dims}d": inverse.detach().numpy(),
                f"grad/{name}/d{dims}d": gradient.numpy(),
                f"out/{name}/evaluations{dims}d": np.array([forward.evaluations, backward]),
            }
    return results


def _published_backward(ddf: Tensor, inverse: Tensor, cotangent: Tensor, options: dict[str, Any]) -> int:
    """Evaluations of the published iteration for the gradient, which we solve directly."""
    place = inverse.clone().requires_grad_()
    with torch.enable_grad():
        value = -warp(ddf, place)

    def function(x: Tensor) -> Tensor:
        return torch.autograd.grad(value, place, x, retain_graph=True)[0] + cotangent

    def change(difference: Tensor, x: Tensor) -> Tensor:
        return difference.norm() / (options["backward"]["epsilon"] + x.norm())

    solver = Solver(options["backward"]["threshold"], options["backward"]["max_iterations"])
    return anderson(function, torch.zeros_like(cotangent), change, solver).evaluations


def _update(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    arguments = meta["constructor"]
    size, factor = arguments["input_shape"], arguments["factor"]
    module = UpdateExtraction(
        len(size),
        arguments["n_input_features"],
        arguments["n_features"],
        arguments["n_convolutions"],
        arguments["n_groups"],
    )
    prefix = "_not_none_dense_extration_networks.0."
    official = layout.fill(meta["state_dict"], **meta["fill"])
    renamed = rename_keys({prefix + name: _tensor(values) for name, values in official.items()}, KEY_MAP)
    module.load_state_dict({name.removeprefix("updates.0."): value for name, value in renamed.items()})
    z1, z2 = (_tensor(arrays[f"in/{name}"], grad=True) for name in ("z1", "z2"))
    bound = MULTIPLIER * bspline_bound((factor,) * len(size))
    a, b = (bspline_field(bound * field.tanh(), size, factor) for field in module(z1, z2))
    solver = SOLVERS[_solver(meta)]
    known = Halves(*(_tensor(arrays[f"in/{name}"]) for name in HALVES))
    halves = advance(known, a, b, solver)
    there, back = halves.between()
    ((there + back) * _tensor(arrays["in/cotangent"])).sum().backward()
    a_inverse, b_inverse = (invert_contraction(x, solver) for x in (a, b))
    outputs = {"a": a, "b": b, "a_inverse": a_inverse, "b_inverse": b_inverse}
    outputs |= {"step": compose(a, b_inverse), "step_inverse": compose(b, a_inverse)}
    outputs |= {"forward": there, "inverse": back, **dict(zip(HALVES, halves, strict=True))}
    results = {f"out/{name}": value.detach().numpy() for name, value in outputs.items()}
    places = [rename_keys({prefix + name: None}, KEY_MAP) for name in official]
    return (
        results
        | _gradients(module, [next(iter(p), "").removeprefix("updates.0.") for p in places])
        | {f"grad/{name}": value.grad.numpy() for name, value in (("z1", z1), ("z2", z2)) if value.grad is not None}
    )


HALVES = ("left_forward", "right_forward", "left_inverse", "right_inverse")


def _gradients(module: nn.Module, names: list[str]) -> Arrays:
    """Norm of the gradient of each official entry, NaN where it is none of ours."""
    parameters = dict(module.named_parameters())
    norms = [float(parameters[name].grad.norm()) if name in parameters else np.nan for name in names]  # type: ignore[union-attr]
    return {"grad/norms": np.array(norms)}


def _build(meta: dict[str, Any]) -> tuple[SITReg, list[str]]:
    """The network with the file's weights, and our name of each entry of the official state dict, "" where dropped."""
    given = meta["constructor"]
    revision = given.get("revision") == "2023"
    normalises = given.get("use_normalization_in_deformation_extraction", not revision)
    network = SITReg(
        len(given["input_shape"]),
        channels=given["n_features_per_resolution"],
        update_channels=given["n_transformation_features_per_resolution"],
        convolutions=given["n_feature_convolutions_per_resolution"],
        update_convolutions=[n or 2 for n in given["n_transformation_convolutions_per_resolution"]],
        groups=given["n_groups"],
        update_groups=given["n_groups"] if normalises else None,
        rectify_first=revision,
        affine_size=given["input_shape"] if given["predict_affine"] else None,
        affine_hidden_layers=1,
        spacing=given["voxel_size"],
        solver=_solver(meta),
    )
    key_map = KEY_MAP_2023 if revision else KEY_MAP
    official = layout.fill(meta["state_dict"], **meta["fill"])
    network.load_state_dict(rename_keys({name: _tensor(values) for name, values in official.items()}, key_map))
    return network, [next(iter(rename_keys({name: None}, key_map)), "") for name in official]


def _network(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, _ = _build(meta)
    images = torch.cat([_tensor(arrays["in/image_1"]), _tensor(arrays["in/image_2"])], dim=1)
    with torch.no_grad():
        outputs = network(images, details=True)
    results = {"out/forward": outputs["ddf"].numpy(), "out/inverse": outputs["inverse_ddf"].numpy()}
    for name in arrays:
        if name.startswith("out/level"):
            level = int(name.removeprefix("out/level").partition("/")[0])
            fields = outputs["pyramid" if name.endswith("forward") else "inverse_pyramid"]
            results[name] = fields[level][(..., *[slice(None, None, 2)] * network.spatial_dims)].numpy()
    if "loss" in meta["constructor"]:
        results |= _training(meta, arrays)
    return results


def _statistics(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Published channel counts: moments and some values of the fields of blurred spots."""
    network, _ = _build(meta)
    size, seed = meta["constructor"]["input_shape"], meta["fill"]["seed"]
    images = np.stack([layout.blobs(size, seed + 1), layout.blobs(size, seed + 2)])[None]
    with torch.no_grad():
        outputs = network(_tensor(images), details=True)
    results: Arrays = {"out/parameters": np.array(sum(p.numel() for p in network.parameters()))}
    places = arrays["in/points"]
    for level in range(network.levels):
        for side, name in (("forward", "pyramid"), ("inverse", "inverse_pyramid")):
            field = outputs[name][level][0].numpy()
            values = field.reshape(len(field), -1)
            moments = [f(values, axis=1) for f in (np.mean, np.std, np.min, np.max)]
            results[f"out/level{level}/{side}_stats"] = np.stack(moments)
            results[f"out/level{level}/{side}_points"] = field[(slice(None), *places)]
    return results


def _training(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, names = _build(meta)
    images = [_tensor(arrays[f"in/image_{i}"], grad=True) for i in (1, 2)]
    targets = {"moving": images[0], "fixed": images[1]}
    targets |= {"moving_mask": _tensor(arrays["in/mask_1"]), "fixed_mask": _tensor(arrays["in/mask_2"])}
    loss = _loss(meta["constructor"]["loss"], network.spatial_dims)

    def total() -> Tensor:
        pair = torch.cat([targets["moving"], targets["fixed"]], dim=1)
        return loss(network(pair, details=loss.details), targets)

    value = total()
    value.backward()
    results = {"loss/total": value.detach().numpy(), **_terms(loss), **_gradients(network, names)}
    results |= {f"grad/image_{i + 1}": image.grad.numpy() for i, image in enumerate(images) if image.grad is not None}
    targets |= {"moving": images[0].detach(), "fixed": images[1].detach()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.2)
    trajectory = []
    for _ in range(4):
        optimiser.zero_grad()
        value = total()
        value.backward()
        optimiser.step()
        trajectory.append(value.item())
    return results | {"traj/loss": np.array(trajectory)}


def _loss(options: dict[str, Any], spatial_dims: int, spacing: Any = None) -> losses.RegistrationLoss:
    """The published loss: both directions alike, each with half the weight."""
    lncc = losses.LNCCLoss(spatial_dims, options["ncc"]["window_size"], offset=0.0)
    similarity = losses.MaskedLoss(lncc, "bilinear")
    smoothness = losses.GradientLoss(spacing=spacing)
    sides = (
        ("forward", "warped", "fixed", "ddf", "moving"),
        ("inverse", "warped_back", "moving", "inverse_ddf", "fixed"),
    )
    terms = {}
    for name, warped, target, field, source in sides:
        masked = [warped, target, field, f"{target}_mask", f"{source}_mask"]
        terms[f"{name}_ncc"] = losses.Term(similarity, masked, 0.5)
        terms[f"{name}_gradient"] = losses.Term(smoothness, [field], 0.5 * options["gradient_weight"])
    return losses.RegistrationLoss(terms)


def _terms(loss: losses.RegistrationLoss) -> Arrays:
    return {f"loss/{name}": np.asarray(value) for name, value in loss.terms_of_last_call().items()}


def _loss_v1(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    options = meta["constructor"]
    fields = {name: _tensor(arrays[f"in/{name}"], grad=True) for name in ("forward", "inverse")}
    names = {"moving": "image_1", "fixed": "image_2", "moving_mask": "mask_1", "fixed_mask": "mask_2"}
    targets = {name: _tensor(arrays[f"in/{stored}"]) for name, stored in names.items()}
    loss = _loss(options, len(options["voxel_size"]), options["voxel_size"])
    total = loss({"ddf": fields["forward"], "inverse_ddf": fields["inverse"]}, targets)
    total.backward()
    forward = fields["forward"].detach()
    inside = warp(targets["moving_mask"], forward, padding_mode="zeros") >= INSIDE
    results = {"out/warped_1": warp(targets["moving"], forward).numpy(), "out/warped_mask_1": inside.float().numpy()}
    results |= {f"grad/{name}": field.grad.numpy() for name, field in fields.items() if field.grad is not None}
    return results | _terms(loss) | {"loss/total": total.detach().numpy()}


def _loss_v2(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    options, pairs = meta["constructor"], (1, 2, 3)
    masks = [_tensor(arrays[f"in/mask_{i}"]) for i in pairs]
    fields = {
        f"{side}_{i}": _tensor(arrays[f"in/{side}_{i}"], grad=True) for side in ("forward", "inverse") for i in pairs
    }
    there, back = (torch.cat([fields[f"{side}_{i}"] for i in pairs]) for side in ("forward", "inverse"))
    # Pair i has image i moving and the next one fixed.
    moving_mask, fixed_mask = torch.cat(masks), torch.cat([*masks[1:], masks[0]])
    consistency = losses.CycleConsistencyLoss(options["voxel_size"])
    cycles = {
        "forward": consistency.cycle(there, fixed_mask, reverse=True),
        "inverse": consistency.cycle(back, moving_mask),
    }
    parts = {f"consistency_{side}": consistency.measure(*cycle).mean() for side, cycle in cycles.items()}
    parts["consistency"] = consistency(there, back, moving_mask, fixed_mask)
    folding, smoothness = losses.FoldingLoss(options["ndv_threshold"]), losses.GradientLoss()
    for name, field in fields.items():
        parts |= {f"ndv_{name}": folding(field), f"gradient_{name}": smoothness(field)}
    ndv = torch.stack([parts[f"ndv_{name}"] for name in fields]).sum()
    total = _v2(options)({"ddf": there, "inverse_ddf": back}, {"moving_mask": moving_mask, "fixed_mask": fixed_mask})
    results = {
        "out/cycle_forward": cycles["forward"][0].detach().numpy(),
        "out/cycle_mask_forward": cycles["forward"][1].numpy(),
        "loss/total": total.detach().numpy(),
        "loss/ndv_threshold_0.2_forward_1": losses.FoldingLoss(0.2)(fields["forward_1"]).detach().numpy(),
        **{f"loss/{name}": value.detach().numpy() for name, value in parts.items()},
        **{f"out/jacobian/{name}": values for name, values in _jacobians(fields["forward_1"].detach()[0]).items()},
    }
    for kind, value in (("consistency", parts["consistency"]), ("ndv", ndv), ("total", total)):
        gradients = torch.autograd.grad(value, [*fields.values()], retain_graph=True)
        results |= {f"grad/{kind}/{name}": g.numpy() for name, g in zip(fields, gradients, strict=True)}
    return {name: value for name, value in results.items() if name in arrays}


def _v2(options: dict[str, Any]) -> losses.RegistrationLoss:
    """The terms on fields of the published fine-tuning, on a batch of three pairs."""
    folding, smoothness = losses.FoldingLoss(), losses.GradientLoss()
    terms = {}
    for field in ("ddf", "inverse_ddf"):
        terms[f"gradient_{field}"] = losses.Term(smoothness, [field], 0.5 * options["gradient_weight"])
        terms[f"ndv_{field}"] = losses.Term(folding, [field], 0.5 * options["ndv_weight"])
    on = ["ddf", "inverse_ddf", "moving_mask", "fixed_mask"]
    terms["consistency"] = losses.Term(losses.CycleConsistencyLoss(), on, options["consistency_weight"])
    return losses.RegistrationLoss(terms)


def _jacobians(field: Tensor) -> Arrays:
    found = {"000": metrics.central_determinant(field), **dict(metrics.digital_determinants(field))}
    names = {"star1": "j1", "star2": "j2"}
    return {
        f"{names.get(name, name)}_min_mean": torch.stack([values.min(), values.mean()]).numpy()
        for name, values in found.items()
    }


CASES = {
    "bspline": _bspline,
    "inversion": _inversion,
    "update": _update,
    "net": _network,
    "stats": _statistics,
    "loss_v1": _loss_v1,
    "loss_v2": _loss_v2,
}

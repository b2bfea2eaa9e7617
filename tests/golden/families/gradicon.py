# SPDX-License-Identifier: Apache-2.0
"""GradICON: networks, losses of both directions and their training, similarities, physical transforms, intensities."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import layout
import numpy as np
import torch
from torch import Tensor, nn

from common import losses
from common.blocks.tall_unet import TallUNet
from common.data.modalities import scale_modality
from common.networks import GradICON
from common.optimisation import NetworkWeights, OptimisingInferer
from common.spatial import Grid, cell_determinant, identity_grid, warp
from common.spatial.maps import PointMap
from common.spatial.transform import Affine, Field, Transform
from common.spatial.world import divided_grid
from common.weights.family import to_ours
from common.weights.gradicon import FAMILY
from common.weights.state_dicts import find_place, unpack_state_dict

Arrays = dict[str, np.ndarray]
Loss = losses.InverseConsistencyLoss | losses.GradientInverseConsistencyLoss


def compute(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Everything of a file, under the names that it has there."""
    name = next(name for name in CASES if meta["case"].startswith(name))
    return CASES[name](meta, arrays)


def _tensor(array: np.ndarray, grad: bool = False) -> Tensor:
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def _official(meta: dict[str, Any]) -> dict[str, Tensor]:
    filled = layout.fill(meta["state_dict"], **meta["fill"])
    return {name: _tensor(values) for name, values in filled.items()}


def _network(meta: dict[str, Any]) -> GradICON:
    state = unpack_state_dict(_official(meta), meta["case"], FAMILY.container)
    arguments = FAMILY.describe_official(state, None).arguments
    network = GradICON(**arguments)
    network.load_state_dict(to_ours(FAMILY, state, arguments))
    return network


def _norms(meta: dict[str, Any], network: GradICON) -> np.ndarray:
    """Of the gradients, in the official order; NaN for statistics."""
    parameters, places = dict(network.named_parameters()), FAMILY.key_map(network.arguments)
    norms = []
    for name, *_ in meta["state_dict"]:
        place = find_place(name.removeprefix("regis_net."), places)
        gradient = parameters[place].grad if place in parameters else None
        norms.append(np.nan if gradient is None else float(gradient.norm()))
    return np.array(norms)


def _extent(size: Sequence[int]) -> Tensor:
    return torch.tensor([n - 1.0 for n in size]).view(1, -1, *[1] * len(size))


def _positions(ddf: Tensor) -> Tensor:
    """From voxels displaced to positions in units of the extent."""
    return ((identity_grid(ddf.shape[2:]) + ddf) / _extent(ddf.shape[2:])).detach()


def _halved(values: Tensor) -> np.ndarray:
    return values.detach()[..., ::2].numpy()


def _unet(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """The published U-Net on its own, as a tree of one."""
    official = {f"net.{name}": value for name, value in _official(meta).items()}
    described = FAMILY.describe_official(official, None).arguments
    network = GradICON(**described)
    network.load_state_dict(to_ours(FAMILY, official, described))
    unet = network.stages[0]
    assert isinstance(unet, TallUNet)
    pair = torch.cat([_tensor(arrays[f"in/image_{side}"]) for side in "AB"], dim=1)
    evaluated = unet.eval()(pair).detach()
    trained = unet.train()(pair)
    loss = trained.square().mean()
    loss.backward()
    norms = _norms({"state_dict": [[f"net.{name}"] for name, *_ in meta["state_dict"]]}, network)
    halved = arrays["out/train"].shape != arrays["out/eval"].shape
    results = {"out/eval": evaluated.numpy(), "out/train": _halved(trained) if halved else trained.detach().numpy()}
    return results | {"loss/mean_square": loss.detach().numpy(), "grad/norms": norms}


def _tree(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    moving, fixed = (_tensor(arrays[f"in/image_{side}"]) for side in "AB")
    with torch.no_grad():
        outputs = _network(meta).eval()(torch.cat([moving, fixed], dim=1), details=True)
    extent = _extent(moving.shape[2:]).flatten()
    points = _tensor(arrays["in/points"]).movedim(1, 2) * extent
    return {
        "out/map_AB": _positions(outputs["ddf"]).numpy(),
        "out/map_BA": _positions(outputs["inverse_ddf"]).numpy(),
        "out/points_AB": (outputs["map"](points) / extent).movedim(1, 2).numpy(),
        "out/warped_A": warp(moving, outputs["ddf"]).numpy(),
    }


def _published(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """The released layout; images by rule."""
    size, index = meta["constructor"]["input_shape"][2:], _tensor(arrays["in/index"])
    moving, fixed = (_tensor(layout.blobs(size, int(seed)))[None, None] for seed in arrays["in/image_seeds"])
    with torch.no_grad():
        outputs = _network(meta).eval()(torch.cat([moving, fixed], dim=1), ["inverse_ddf"])
    there, back = outputs["ddf"], outputs["inverse_ddf"]
    displacement = (there / _extent(size))[0].flatten(1)
    similarity = losses.GaussianLNCCLoss(5)
    pairs = ((moving, there, fixed), (fixed, back, moving))
    values = [similarity(warp(image, ddf, padding_mode="zeros"), target) for image, ddf, target in pairs]
    statistics = [displacement.mean(1), displacement.std(1), displacement.amin(1), displacement.amax(1)]
    return {
        "out/map_AB_at": _positions(there)[0].flatten(1)[:, index].numpy(),
        "out/map_BA_at": _positions(back)[0].flatten(1)[:, index].numpy(),
        "out/u_stats": torch.stack(statistics, dim=1).numpy(),
        "loss/similarity": torch.stack(values).sum().numpy(),
        **_figures(there, back),
    }


def _figures(there: Tensor, back: Tensor) -> Arrays:
    """What is reported beside the loss: mean square of the displacement there, and folded cells of the way back."""
    # In two dimensions the published count is of forward differences: backward ones of the mirrored field.
    field = back if back.shape[1] == 3 else -back.flip(2, 3)
    folded = (cell_determinant(field.detach()) < 0).sum() / len(back)
    magnitude = (there.detach() / _extent(there.shape[2:])).square().mean()
    return {"loss/magnitude": magnitude.numpy(), "loss/flips": folded.numpy()}


class Recorded(nn.Module):
    """A penalty at points of recorded noise instead of the draw's."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, there: PointMap, back: PointMap, fixed: Tensor, noise: Tensor) -> Tensor:
        for axis in range(2, noise.ndim):
            noise = noise.index_select(axis, torch.arange(0, noise.shape[axis], getattr(self.loss, "every", 1)))
        return self.loss.at(there, back, fixed, noise)


def _similarity(name: str) -> nn.Module:
    kind, sigma = re.fullmatch(r"([a-z]+)(\d*)", name).groups()  # type: ignore[union-attr]  # all names are so
    if kind.endswith("lncc"):
        return losses.GaussianLNCCLoss(int(sigma), squared=kind == "sqlncc")
    return losses.BlurredMSELoss(int(sigma)) if sigma else {"ssd": nn.MSELoss, "ncc": losses.NCCLoss}[kind]()


def _loss(meta: dict[str, Any], masked: bool) -> losses.RegistrationLoss:
    given = meta["constructor"]
    kind = given.get("class", "instance optimisation")
    dense = kind.startswith("ICON.")
    regulariser: Loss = losses.GradientInverseConsistencyLoss(every=1 if dense else 2)
    if kind.endswith("InverseConsistentNet"):
        regulariser = losses.InverseConsistencyLoss()
    similarity = _similarity(given["similarity"])
    fields: list[list[str]] = [[], []]
    if "conservation" in kind:
        similarity, fields = losses.IntensityConservingLoss(similarity), [["ddf"], ["inverse_ddf"]]
    masks = [["fixed_mask"], ["moving_mask"]] if masked else [[], []]
    terms = {
        "there": losses.Term(similarity, ["warped", "fixed", *fields[0], *masks[0]]),
        "back": losses.Term(similarity, ["warped_back", "moving", *fields[1], *masks[1]]),
        "consistency": losses.Term(Recorded(regulariser), ["map", "inverse_map", "fixed", "noise"], given["lambda"]),
    }
    return losses.RegistrationLoss(terms, padding_mode="border" if dense else "zeros")


def _steps(
    network: GradICON, loss: losses.RegistrationLoss, data: dict[str, Tensor], arrays: Arrays, optimizer: Any
) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Total and outputs before each step of the optimiser, with a draw of noise each."""
    for noise in _tensor(arrays["in/noise"]):
        optimizer.zero_grad()
        outputs = network(torch.cat([data["moving"], data["fixed"]], dim=1), loss.details)
        total = loss(outputs, data | {"noise": noise})
        total.backward()
        yield total.detach(), outputs
        optimizer.step()


def _data(arrays: Arrays, grad: bool) -> dict[str, Tensor]:
    sides = {"moving": "A", "fixed": "B"}
    data = {name: _tensor(arrays[f"in/image_{side}"], grad) for name, side in sides.items()}
    masks = {f"{name}_mask": f"in/mask_{side}" for name, side in sides.items()}
    return data | {name: _tensor(arrays[mask]) for name, mask in masks.items() if mask in arrays}


def _training(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, data = _network(meta), _data(arrays, grad=True)
    loss = _loss(meta, "in/mask_A" in arrays)
    optimizer = torch.optim.SGD(network.parameters(), lr=meta["sgd_rate"])
    results: Arrays = {}
    trajectory = []
    for total, outputs in _steps(network, loss, data, arrays, optimizer):
        trajectory.append(float(total))
        if results:
            continue
        terms = loss.terms_of_last_call()
        results = {
            "loss/total": total.numpy(),
            "loss/similarity": np.asarray(terms["there"] + terms["back"]),
            "loss/inverse_consistency": np.asarray(terms["consistency"]),
            "out/map_AB": _halved(_positions(outputs["ddf"])),
            "out/warped_B": _halved(warp(data["fixed"], outputs["inverse_ddf"], padding_mode=loss.padding_mode)),
            "grad/norms": _norms(meta, network),
            **_figures(outputs["ddf"], outputs["inverse_ddf"]),
        }
        for name, side in (("moving", "A"), ("fixed", "B")):
            gradient = data[name].grad
            assert gradient is not None
            results[f"grad/{side}"] = gradient.numpy().copy()
            data[name] = data[name].detach()
    return results | {"traj/loss": np.array(trajectory)}


class Noted(losses.RegistrationLoss):
    """A loss that takes recorded noise by the number of the draw, and notes its values."""

    def __init__(self, loss: losses.RegistrationLoss, noise: Tensor) -> None:
        super().__init__({name: term for name, term in loss.terms.items() if isinstance(term, losses.Term)})
        self.noise = noise
        self.values: dict[int, float] = {}

    def forward(self, outputs: Mapping[str, Any], targets: Mapping[str, Any]) -> Tensor:
        number = int(targets["draw"][0, 1])
        total = super().forward(outputs, {**targets, "noise": self.noise[number - 1]})
        # At its end the optimisation looks once more, whether the value is finite.
        self.values.setdefault(number, total.item())
        return total


def _instance(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    network, noise = _network(meta).eval(), _tensor(arrays["in/noise"])
    loss = Noted(_loss(meta, masked=False), noise)
    pair = torch.cat([*_data(arrays, grad=False).values()], dim=1)
    steps, rate = len(noise) - 1, meta["constructor"]["adam_rate"]
    inferer = OptimisingInferer(loss, steps, NetworkWeights(), rate, loss.details)
    outputs = inferer(pair, network)
    # The last of the recorded values is that of the result.
    draw = torch.tensor([[0, len(noise), 0]])
    loss(outputs, {"moving": pair[:, :1], "fixed": pair[:, 1:], "draw": draw})
    trajectory = [loss.values[number] for number in range(1, len(noise) + 1)]
    return {"traj/loss": np.array(trajectory), "out/map_AB": _halved(_positions(outputs["ddf"]))}


def _mind(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """With a mask as published, whose mean is that over all voxels."""
    loss = losses.MINDSSCLoss(2, 2)
    if mask is None:
        return loss(pred, target)
    return ((loss.context(pred) - loss.context(target)).square() * (mask != 0)).mean()


def _similarities(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    results: Arrays = {}
    for measure in meta["constructor"]["measures"]:
        name = measure.removesuffix("_masked")
        mask = [_tensor(arrays["in/mask"])] if name != measure else []
        loss = _mind if name == "mindssc_r2_d2" else _similarity(name)
        image = _tensor(arrays["in/image_A"], grad=True)
        value = loss(image, _tensor(arrays["in/image_B"]), *mask)
        value.backward()
        assert image.grad is not None
        results |= {f"loss/{measure}": value.detach().numpy(), f"grad/{measure}": image.grad.numpy()}
    return results


def _physical(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """A map between network lattices as a transform of the world, whose axes are here the file's."""
    i, j, k = meta["constructor"]["network_shape"]
    shape = (i, j, k)
    lattices = []
    for side in "AB":
        affine = np.eye(4)
        affine[:3, :3] = arrays[f"in/direction{side}"] * arrays[f"in/spacing{side}"]
        affine[:3, 3] = arrays[f"in/origin{side}"]
        # Array axes run z, y, x.
        affine[:3, :3] = affine[:3, 2::-1]
        x, y, z = arrays[f"in/size{side}"].tolist()
        lattices.append(divided_grid(Grid((z, y, x), torch.from_numpy(affine)), shape))
    moving, fixed = lattices
    ddf = _tensor(arrays["in/map"]) * _extent(shape) - identity_grid(shape)
    between = Affine(moving.affine @ torch.linalg.inv(fixed.affine))
    points = Transform((Field(fixed, ddf), between)).points(_tensor(arrays["in/points_B"]))
    return {"out/points_A": points.numpy()}


def _preprocess(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    ct, mri, mask = (_tensor(arrays[f"in/{name}"]) for name in ("ct", "mri", "segmentation"))
    scaled = {
        "ct": scale_modality(ct, "ct"),
        "mri": scale_modality(mri, "mri"),
        "mri_seg": scale_modality(mri, "mri", mask),
        "lung": scale_modality(ct, "lung_ct", mask),
        "brain": scale_modality(mri, "brain_mri"),
    }
    return {f"out/{name}": image.numpy() for name, image in scaled.items()}


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "tallunet2": _unet,
    "multistep": _tree,
    "unigradicon_published": _published,
    "loss_": _training,
    "instance": _instance,
    "similarity": _similarities,
    "physical": _physical,
    "preprocess": _preprocess,
}

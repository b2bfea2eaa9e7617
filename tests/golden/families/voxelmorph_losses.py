# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph's losses, operations on fields and measures, of either library and of mmipt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from common import losses, metrics
from common.losses.lncc import CONVENTIONS
from common.spatial import integrate, resize_image, warp

Arrays = dict[str, np.ndarray]
Loss = Callable[..., Tensor]
VARIANCE = 1e-5
"""What all forms of NCC add to variances, or give them at least."""


def tensor(array: np.ndarray) -> Tensor:
    """An array of a file."""
    return torch.from_numpy(np.array(array))


def with_gradient(loss: Loss, pred: Tensor, *others: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Value of a loss, and its gradient to the first of its arguments."""
    pred = pred.detach().requires_grad_()
    value = loss(pred, *others)
    return value.detach().numpy(), torch.autograd.grad(value, pred)[0].numpy()


def named(found: dict[str, tuple[np.ndarray, np.ndarray]], arrays: Arrays) -> Arrays:
    """Values and gradients by the names of the files."""
    return {
        f"{kind}/{name}": value
        for name, both in found.items()
        for kind, value in zip(("loss", "grad"), both, strict=True)
        if f"{kind}/{name}" in arrays
    }


def _in_torch(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Losses of VoxelMorph's PyTorch form, of mmipt and of TransMorph."""
    fixed, warped, field = (tensor(arrays[f"in/{name}"]) for name in ("fixed", "warped", "field"))
    ncc = {"vxm_ncc": losses.LNCCLoss(**CONVENTIONS["official"]), "mmipt_ncc": losses.LNCCLoss(**CONVENTIONS["mmipt"])}
    found = {name: with_gradient(loss, warped, fixed) for name, loss in ncc.items()}
    for name, loss in ncc.items():
        found[f"{name}_low_contrast"] = with_gradient(_dimmed(loss), warped, fixed)
    found["vxm_mse"] = with_gradient(losses.MSELoss(), warped, fixed)
    found["vxm_grad_l1"] = with_gradient(losses.GradientLoss("l1"), field)
    found["vxm_grad_l2_mult2"] = with_gradient(lambda u: 2 * losses.GradientLoss()(u), field)
    found["mmipt_grad_l2_normalised"] = with_gradient(slopes_of_extent, field)
    maps = [tensor(arrays[f"in/prob_{name}"]) for name in ("warped", "fixed")]
    found["vxm_dice"] = with_gradient(lambda p, t: losses.SoftDiceLoss(eps=0.0)(p, t) - 1, *maps)
    found["mmipt_dice"] = with_gradient(losses.SoftDiceLoss(squared=True), *maps)
    if "loss/bending" in arrays:
        found["bending"] = with_gradient(_bending, field)
    return named(found, arrays)


def _dimmed(loss: Loss) -> Loss:
    return lambda pred, target: loss(0.1 * pred, 0.1 * target)


def slopes_of_extent(field: Tensor) -> Tensor:
    """Mean squared slope of fields in units of which the image has two along each axis, by the size for the extent.

    Args:
        field: (B, d, *spatial), in those units.
    """
    size = field.shape[2:]
    voxels = field * torch.tensor(size).view(1, -1, *[1] * len(size)) / 2
    return losses.GradientLoss("l2", spacing="extent")(voxels)


def _bending(field: Tensor) -> Tensor:
    """Energy of TransMorph's regulariser, which no published recipe has: central differences twice, inside alone."""

    def slope(volume: Tensor, axis: int) -> Tensor:
        sides = []
        for part in (slice(2, None), slice(-2)):
            where = [slice(None)] * 2 + [slice(1, -1)] * 3
            where[axis] = part
            sides.append(volume[tuple(where)])
        return (sides[0] - sides[1]) / 2

    total = field.new_zeros(())
    for one in (2, 3, 4):
        for other in (2, 3, 4):
            total = total + slope(slope(field, one), other).square().mean()
    return total


def _in_tensorflow(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Losses and samplings of VoxelMorph's TensorFlow form."""
    fixed, warped, velocity = (tensor(arrays[f"in/{name}"]) for name in ("fixed", "warped", "velocity"))
    mean, log_variance = tensor(arrays["in/mean"]), tensor(arrays["in/log_sigma"])
    kl = losses.VelocityKLLoss(10)
    found = {
        "ncc": with_gradient(losses.LNCCLoss(**CONVENTIONS["tensorflow"]), warped, fixed),
        "ncc_signed": with_gradient(_signed_ncc, warped, fixed),
        "mse_sigma": with_gradient(lambda *images: losses.MSELoss()(*images) / 0.1**2, warped, fixed),
        "grad_l2": with_gradient(lambda u: 2 * losses.GradientLoss()(u), mean),
        "kl": with_gradient(lambda both: kl(both[:, :3], both[:, 3:] / 2), torch.cat([mean, log_variance], dim=1)),
    }
    border = warp(fixed, velocity)
    return named(found, arrays) | {
        "out/integrated_border": integrate(velocity, 5, "border").numpy(),
        "out/warped_border": border.numpy(),
        "out/warped_fill0": torch.where(_inside(velocity), border, 0).numpy(),
    }


def _signed_ncc(pred: Tensor, target: Tensor, window: int = 5) -> Tensor:
    """The correlation itself, which no published recipe takes."""
    ones = pred.new_ones(1, 1, *[window] * 3)

    def sums(image: Tensor) -> Tensor:
        return F.conv3d(image, ones, padding=window // 2)

    def product(one: Tensor, other: Tensor) -> Tensor:
        return sums(one * other) - sums(one) * sums(other) / window**3

    variances = product(pred, pred) * product(target, target)
    return -(product(pred, target) / (variances + VARIANCE).sqrt()).mean()


def _inside(ddf: Tensor) -> Tensor:
    """(B, 1, *spatial): where no coordinate lies beyond the outermost centres, outside of which an image is all 0."""
    size = ddf.shape[2:]
    axes = torch.meshgrid(*[torch.arange(n, dtype=ddf.dtype) for n in size], indexing="ij")
    where, last = torch.stack(axes) + ddf, torch.tensor(size).view(1, -1, *[1] * len(size)) - 1
    return ((where >= 0) & (where <= last)).all(1, keepdim=True)


def _operations(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    velocity, image, half = (tensor(arrays[f"in/{name}"]) for name in ("velocity", "image", "half_field"))
    size = velocity.shape[2:]
    return {
        "out/integrated": integrate(velocity, meta["constructor"]["nsteps"]).numpy(),
        "out/warped": warp(image, velocity, padding_mode="zeros").numpy(),
        "out/warped_seg_nearest": warp(tensor(arrays["in/seg"]), velocity, "nearest", "zeros").numpy(),
        "out/resize_down2": (resize_image(velocity, [n // 2 for n in size]) / 2).numpy(),
        "out/resize_up2": (2 * resize_image(half, size)).numpy(),
    }


def _measures(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """Of mmipt: a class that one map lacks has a Dice of 0 and no surface distances."""
    warped, fixed = (tensor(arrays[f"in/{name}_seg"]).long()[None, None] for name in ("pred", "target"))
    field = tensor(arrays["in/displacement"])[None]
    labels = list(range(1, meta["constructor"]["num_classes"]))
    some = metrics.labels_present(warped, labels) | metrics.labels_present(fixed, labels)
    overlap = metrics.dice_per_label(warped, fixed, labels, absent="zero")
    dice = overlap.where(some, torch.nan)[0].numpy()
    distances = metrics.hd95_l2r(warped, fixed, labels)[0].numpy()
    average = metrics.average_surface_distance(warped, fixed, labels)[0, :, 0].numpy()
    there = np.isfinite(distances)
    return {
        "out/dice": dice,
        "out/mean_dice": np.nanmean(dice),
        "out/hd95": distances[there],
        "out/mean_hd95": distances[there].mean(),
        "out/asd": average[there],
        "out/mean_asd": average[there].mean(),
        "out/npj_percent": 100 * metrics.fold_fraction(field)[0].numpy(),
        "out/sdlogj": metrics.sdlogj_l2r(field)[0].numpy(),
    }


CASES = {
    "losses_tf": _in_tensorflow,
    "losses_": _in_torch,
    "ops_": _operations,
    "metrics_mmipt": _measures,
}
"""Beginnings of the names of cases, the longer ones first, and what computes them."""

# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph's distributions of velocities: the library's, and the other network of that name ("VoxelMorph-diff")."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import layout
import numpy as np
import torch
import torch.nn.functional as F
from families import voxelmorph_networks
from torch import Tensor, nn

from common import losses
from common.spatial import integrate, warp

Arrays = dict[str, np.ndarray]
SLOPE = 0.2


def _tensor(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(arrays[name])


def _official(meta: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in layout.fill(meta["state_dict"], **meta["fill"]).items()}


def _library(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given = meta["constructor"]
    network = voxelmorph_networks.build(meta)
    moving, fixed, noise = (_tensor(arrays, f"in/{name}") for name in ("source", "target", "noise"))
    loss = losses.RegistrationLoss(
        {
            "recon": losses.Term(losses.MSELoss(), ["warped", "fixed"], given["image_sigma"] ** -2),
            "kl": losses.Term(losses.VelocityKLLoss(given["prior_lambda"]), ["velocity", "log_sigma"]),
        },
        padding_mode="border",
    )
    with patch("torch.randn_like", lambda like: noise):
        outputs = network(torch.cat([moving, fixed], dim=1), loss.details)
    loss(outputs, {"moving": moving, "fixed": fixed}).backward()
    values = loss.terms_of_last_call()
    fields = {name: field.detach() for name, field in outputs.items()}
    return {
        "out/params": torch.cat([fields["velocity"], 2 * fields["log_sigma"]], dim=1).numpy(),
        "out/flow": fields["ddf"].numpy(),
        "out/warped": warp(moving, fields["ddf"]).numpy(),
        "loss/recon": np.array(values["recon"] / given["image_sigma"] ** 2),
        "loss/kl": np.array(values["kl"]),
        "grad/norms": voxelmorph_networks.norms(network, meta),
    }


class _Convolution(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv(x), SLOPE)


class Easyreg(nn.Module):
    """The network of the table of IXI, under its own names: half resolution, squared seven times without a division."""

    def __init__(self) -> None:
        super().__init__()
        down = pairwise((2, 16, 32, 32, 32, 32))
        self.encoders = nn.ModuleList(_Convolution(*pair, stride=2 if i else 1) for i, pair in enumerate(down))
        up = ((32, 32), (64, 32), (64, 32), (64, 32), (32, 16))
        self.decoders = nn.ModuleList(_Convolution(*pair) for pair in up)
        self.flow_mean, self.flow_sigma = (nn.Conv3d(16, 3, 3, padding=1) for _ in range(2))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of the velocity and logarithm of its variance, at half resolution."""
        ways = []
        for convolution in self.encoders:
            image = convolution(image)
            ways.append(image)
        x = self.decoders[0](ways[4])
        for level in (3, 2, 1):
            larger = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
            x = self.decoders[4 - level](torch.cat([larger, ways[level]], dim=1))
        x = self.decoders[4](x)
        return self.flow_mean(x), self.flow_sigma(x)


def easyreg_displacement(velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Integrated at half resolution, and enlarged without a change of its values."""
    integrated = integrate(2.0**7 * velocity, 7)
    return integrated, F.interpolate(integrated, scale_factor=2, mode="trilinear", align_corners=False)


def easyreg_kl(field: Tensor, log_variance: Tensor, prior_lambda: float, prior_lambda_mean: float) -> Tensor:
    """Of another form than the library's: central differences of each component along its own axis alone.

    Args:
        field: what is kept smooth, (B, d, *spatial): there the integrated field.
        log_variance: of the velocity, (B, d, *spatial).
        prior_lambda: weight of the prior in the spread.
        prior_lambda_mean: that in the precision.
    """
    dims = field.ndim - 2
    slopes = [torch.gradient(field[:, axis], dim=axis + 1)[0] for axis in range(dims)]
    precision = 0.5 * torch.stack([slope.square().mean() for slope in slopes]).sum()
    spread = losses.VelocityKLLoss(prior_lambda)(torch.zeros_like(log_variance), 0.5 * log_variance)
    return spread + 0.5 * dims * prior_lambda_mean * precision


def _easyreg(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given, network = meta["constructor"], Easyreg()
    network.load_state_dict(_official(meta))
    moving, fixed, noise = (_tensor(arrays, f"in/{name}") for name in ("source", "target", "noise"))
    mean, log_variance = network(torch.cat([moving, fixed], dim=1))
    integrated, ddf = easyreg_displacement(mean.detach())
    extent = torch.tensor([n - 1.0 for n in ddf.shape[2:]]).view(1, -1, 1, 1, 1)
    results = {
        "out/integrated_low": integrated,
        "out/disp_normalised": 2 * ddf / extent,
        "out/log_sigma": log_variance.detach(),
        "out/warped": warp(moving, ddf, padding_mode="zeros"),
    }
    integrated, ddf = easyreg_displacement(mean + (0.5 * log_variance).exp() * noise)
    warped = warp(moving, ddf, padding_mode="zeros")
    values = {
        "loss/recon": losses.MSELoss()(warped, fixed) / given["image_sigma"] ** 2,
        "loss/kl": easyreg_kl(integrated, log_variance, given["prior_lambda"], given["prior_lambda_mean"]),
    }
    torch.stack([*values.values()]).sum().backward()
    results |= {name: value.detach() for name, value in values.items()}
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    norms = [float(gradients[name].norm()) for name, *_ in meta["state_dict"]]  # type: ignore[union-attr]  # all have one
    return {name: value.numpy() for name, value in results.items()} | {"grad/norms": np.array(norms)}


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {"prob_official": _library, "prob_easyreg": _easyreg}
"""Names of cases, and what computes them."""

# SPDX-License-Identifier: Apache-2.0
"""Relatives of TransMorph: LUMIR's fields that grow in time, velocities of splines and random ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from families import transmorph_networks as networks
from families import voxelmorph_probabilistic
from torch import Tensor

from common import losses
from common.spatial import warp
from common.weights import transmorph_bspline, transmorph_diff, transmorph_tvf

Arrays = dict[str, np.ndarray]
NORM = 1e-5
"""What norms of whole fields, the last of the statistics, may differ by, relatively, as the spec says: the network in
float64 itself is off by more than the absolute 1e-4 of the files."""


def _in_time(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    """The file has images that are halved already, and what the network says before it is doubled."""
    network: Any = networks.build(meta, transmorph_tvf.FAMILY, int_steps=7 if meta["constructor"].get("SVF") else 0)
    pair = torch.from_numpy(np.concatenate([arrays["in/moving"], arrays["in/fixed"]], axis=1))
    for axis in range(2, pair.ndim):
        pair = pair.repeat_interleave(2, axis)
    with torch.no_grad():
        flow = network._flow(pair)
    return {"out/flow": flow.numpy(), "out/flow_stats": networks.statistics(flow[0])}


def _statistics(field: Tensor, stored: np.ndarray) -> np.ndarray:
    found = networks.statistics(field[0])
    # The last column, compared here: see NORM.
    np.testing.assert_allclose(found[:, -1], stored[:, -1], rtol=NORM)
    found[:, -1] = stored[:, -1]
    return found


def _spline(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    (spacing,) = set(meta["constructor"]["cps"])
    network = networks.build(meta, transmorph_bspline.FAMILY, spacing=spacing)
    data = networks.images(meta, arrays)
    with torch.no_grad():
        outputs = network(torch.cat([data["moving"], data["fixed"]], dim=1), details=True)
    warped = warp(data["moving"], outputs["ddf"], padding_mode="zeros")
    found = {"velocity": outputs["velocity"], "disp": outputs["flow"], "warped": warped}
    statistics = _statistics(outputs["flow"], arrays["out/disp_stats"])
    return {"out/disp_stats": statistics, **networks.strided(found, arrays)}


def _random(meta: dict[str, Any], arrays: Arrays) -> Arrays:
    given, data = meta["constructor"], networks.images(meta, arrays)
    network = networks.build(meta, transmorph_diff.FAMILY)
    with torch.no_grad():
        outputs = network(torch.cat([data["moving"], data["fixed"]], dim=1), ["log_sigma"])
    ddf = outputs["ddf"]
    extent = torch.tensor([n - 1.0 for n in ddf.shape[2:]]).view(1, -1, 1, 1, 1)
    found = {"disp_normalised": 2 * ddf / extent, "warped": warp(data["moving"], ddf, padding_mode="zeros")}
    recon = losses.MSELoss()(found["warped"], data["fixed"]) / given["image_sigma"] ** 2
    kl = voxelmorph_probabilistic.easyreg_kl(
        ddf, 2 * outputs["log_sigma"], given["prior_lambda"], given["prior_lambda_mean"]
    )
    return {
        "out/disp_stats": _statistics(found["disp_normalised"], arrays["out/disp_stats"]),
        "loss/recon": recon.numpy(),
        "loss/kl": kl.numpy(),
        **networks.strided(found, arrays),
    }


CASES: dict[str, Callable[[dict[str, Any], Arrays], Arrays]] = {
    "TransMorphTVF": _in_time,
    "TranMorphBSplineNet": _spline,
    "TransMorphDiff": _random,
}
"""By the published class."""

# SPDX-License-Identifier: Apache-2.0
"""Fresh networks of TransMorph's family learn to move a spot, from heads that say next to nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.networks import TransMorph, TransMorphBSpline, TransMorphDiff, TransMorphTVF
from common.spatial import identity_grid, warp

SMALL: dict[str, Any] = {"embed_dim": 8, "depths": (1, 1), "heads": (2, 2), "window": (2, 2)}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ixi": (TransMorph, {"head_channels": 8}),
    "oasis": (TransMorph, {"head_channels": 8, "output_resolution": "half", "align_corners": False}),
    "bayes": (TransMorph, {"head_channels": 8, "dropout": 0.1}),
    "in time": (TransMorphTVF, {"head_channels": 8, "time_steps": 3}),
    "in time, of lumir": (TransMorphTVF, {"head_channels": 8, "time_steps": 3, "variant": "lumir"}),
    "random velocities": (TransMorphDiff, {"head_channels": 8, "int_steps": 3}),
    "splines": (TransMorphBSpline, {"lattice_channels": (8,), "int_steps": 3}),
}


def spots() -> torch.Tensor:
    """A spot of the moving image lies two voxels before that of the fixed one, (1, 2, 16, 16)."""
    grid = identity_grid((16, 16))
    return torch.cat([(-(grid - place).square().sum(1, keepdim=True) / 18).exp() for place in (7.0, 9.0)], dim=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_network_learns_to_move_a_spot(name: str) -> None:
    torch.manual_seed(0)
    kind, arguments = NETWORKS[name]
    net, image = kind(2, **SMALL, **arguments), spots()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, amsgrad=True)
    for _ in range(40):
        optimizer.zero_grad()
        (warp(image[:, :1], net(image), padding_mode="zeros") - image[:, 1:]).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (warp(image[:, :1], net.eval()(image)) - image[:, 1:]).square().mean()
    assert error < 0.25 * (image[:, :1] - image[:, 1:]).square().mean()

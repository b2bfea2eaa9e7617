# SPDX-License-Identifier: Apache-2.0
"""Several passes: what each sees, how their displacements become one, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from common.networks import VoxelMorph
from common.networks.passes import in_passes
from common.spatial import compose, warp

from .conftest import pair


def constant(*shift: float) -> Tensor:
    """A displacement of 16 x 16 pixels that is the same everywhere."""
    return torch.tensor(shift, dtype=torch.float32).view(1, 2, 1, 1).expand(1, 2, 16, 16).clone()


def test_each_pass_sees_what_those_before_have_left() -> None:
    seen, image = [], pair(16, 16)

    def register(given: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(given)
        shift = constant(2, -1) if len(seen) == 1 else constant(1, 0)
        return shift, -shift

    outputs = in_passes(image, 3, register, True)
    assert isinstance(outputs, dict) and set(outputs) == {"ddf", "inverse_ddf"}
    torch.testing.assert_close(outputs["ddf"], constant(4, -1))
    torch.testing.assert_close(outputs["inverse_ddf"], constant(-4, 1))
    for given, ddf in zip(seen, (constant(0, 0), constant(2, -1), constant(3, -1)), strict=True):
        torch.testing.assert_close(given[:, 1:], image[:, 1:])
        torch.testing.assert_close(given[:, :1], warp(image[:, :1], ddf))


@pytest.mark.parametrize("spatial", [(32, 40), (17, 24, 16)])
def test_network_of_several_passes(spatial: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"encoder": (2, 4), "decoder": (4, 4, 3), "int_steps": 5, "padding_mode": "border"}
    once, twice = (VoxelMorph(len(spatial), **arguments, passes=passes).eval() for passes in (1, 2))
    once.flow.weight.data *= 4e4
    twice.load_state_dict(once.state_dict())
    image = pair(*spatial, batch=2)
    with torch.no_grad():
        outputs = twice(image, True)
        first, back = twice._there_and_back(image)
        exchanged = twice._there_and_back(image.flip(1))
        second, _ = twice._there_and_back(torch.cat([warp(image[:, :1], first), image[:, 1:]], 1))
        alone = twice(image[1:])
        assert torch.equal(twice.train()(image), once.train()(image))
    # What is found both ways is one map and its inverse, bit for bit.
    assert torch.equal(exchanged[0], back) and torch.equal(exchanged[1], first)
    torch.testing.assert_close(outputs["ddf"], compose(first, second))
    torch.testing.assert_close(alone, outputs["ddf"][1:])
    left = compose(outputs["inverse_ddf"], outputs["ddf"])
    for axis in range(2, left.ndim):
        left = left.narrow(axis, 4, left.shape[axis] - 8)
    assert outputs["ddf"].abs().mean() > 10 * left.abs().mean() > 0

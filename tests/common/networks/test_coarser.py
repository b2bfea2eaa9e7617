# SPDX-License-Identifier: Apache-2.0
"""A network on finer images than its own: what it sees, and where its fields end up."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.networks import EOIR, seen_with
from common.spatial import gaussian_filter


class Shift(nn.Module):
    """Moves all by one of the voxels that it sees; remembers these."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {"spatial_dims": 3}

    def forward(self, image: Tensor, details: Any = False) -> Any:
        """One voxel along each axis; as details a way back and a map of the fixed image, too."""
        self.seen = image
        ddf = torch.ones(len(image), image.ndim - 2, *image.shape[2:])
        found = {
            "ddf": ddf,
            "inverse_ddf": -ddf,
            "bright_map": image[:, 1:],
            "map": abs,
            "velocity": ddf,
            "deviation": ddf,
        }
        return found if details else ddf


@pytest.mark.parametrize(("size", "seen"), [((21, 13, 17), (11, 13, 5)), ((21, 13), (11, 13))])
def test_the_field_is_in_voxels_of_the_images(size: tuple[int, ...], seen: tuple[int, ...]) -> None:
    network = Shift()
    finer: Any = seen_with(network, [1.0, 1.0, 2.0], [0.5, 1.0, 0.5])
    ddf = finer(torch.rand(2, 2, *size))
    assert network.seen.shape[2:] == seen
    expected = torch.tensor([2.0, 1.0, 4.0])[: len(size)].view(1, -1, *[1] * len(size))
    torch.testing.assert_close(ddf, expected.expand(2, len(size), *size))


def test_what_has_a_form_on_the_grid_of_the_images_comes_with_details() -> None:
    finer: Any = seen_with(Shift(), [2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    image = torch.ones(1, 2, 9, 9, 7)
    found = finer(image, details=["inverse_ddf", "*_map", "deviation"])
    assert {*found} == {"ddf", "inverse_ddf", "bright_map", "deviation"}
    torch.testing.assert_close(found["inverse_ddf"], -finer(image))
    assert torch.equal(found["deviation"], found["ddf"])
    torch.testing.assert_close(found["bright_map"], image[:, 1:])


def test_a_smooth_pair_is_seen_as_it_is() -> None:
    network = Shift()
    image = gaussian_filter(torch.rand(1, 2, 33, 29, 31), 4.0, inside=True)
    seen_with(network, [2.0] * 3, [1.0] * 3)(image)
    torch.testing.assert_close(network.seen, image[..., ::2, ::2, ::2], atol=0.01, rtol=0)  # the blur


def test_without_another_voxel_size_it_is_the_network_itself() -> None:
    network = Shift()
    assert seen_with(network, [1.0, 1.0, 1.0], None) is network and seen_with(network, None, None) is network


@pytest.mark.parametrize("spacing", [None, [1.0, 0.5, 1.0]])
def test_coarser_images_than_its_own_are_refused(spacing: list[float] | None) -> None:
    with pytest.raises(InputError, match=re.escape("--io_spacing is [0.6, 0.6, 0.6], but the network sees voxels of")):
        seen_with(Shift(), spacing, [0.6, 0.6, 0.6])


def test_a_method_runs_and_has_its_weights() -> None:
    network = EOIR(spatial_dims=2, start_channel=2, variant="plain").eval()
    finer: Any = seen_with(network, [2.0, 2.0], [1.0, 1.0])
    with torch.no_grad():
        assert finer(torch.rand(1, 2, 31, 40)).shape == (1, 2, 31, 40)
    assert finer.arguments["start_channel"] == 2 and [*finer.parameters()] == [*network.parameters()]

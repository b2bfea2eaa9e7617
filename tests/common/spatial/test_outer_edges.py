# SPDX-License-Identifier: Apache-2.0
"""Sampling at outer edges, against ``grid_sample`` as the published code calls it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial import identity_grid, warp
from common.spatial.outer_edges import integrate_at_edges, sampled_at_edges


def published_warp(image: Tensor, flow: Tensor, stretched: bool) -> Tensor:
    """Coordinates divided by size - 1, displacements so or by size, sampled with ``align_corners=False``."""
    axes = []
    for k, n in enumerate(flow.shape[2:]):
        place = identity_grid(flow.shape[2:], dtype=flow.dtype)[:, k]
        unit = n - 1 if stretched else n
        axes.append(2 * place / (n - 1) - 1 + 2 * flow[:, k] / unit)
    return F.grid_sample(image, torch.stack(axes[::-1], -1), padding_mode="zeros", align_corners=False)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("stretched", [True, False])
@pytest.mark.parametrize("spatial", [(5, 8), (4, 7, 6)])
def test_warp_by_it_is_the_published_warp(spatial: tuple[int, ...], stretched: bool) -> None:
    image, flow = normal(2, 3, *spatial), 2 * normal(2, len(spatial), *spatial)
    found = warp(image, sampled_at_edges(flow, stretched), padding_mode="zeros")
    torch.testing.assert_close(found, published_warp(image, flow, stretched))


def test_a_field_of_nothing_looks_half_a_voxel_outside_at_both_ends() -> None:
    ddf = sampled_at_edges(torch.zeros(1, 2, 5, 1))
    assert ddf[0, 0, :, 0].tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert not ddf[:, 1].any()


@pytest.mark.parametrize("stretched", [True, False])
def test_squarings_sample_as_the_warp_does(stretched: bool) -> None:
    velocity = 3 * normal(2, 3, 5, 4, 6)
    expected = velocity / 4
    for _ in range(2):
        expected = expected + published_warp(expected, expected, stretched)
    torch.testing.assert_close(integrate_at_edges(velocity, 2, stretched), expected)
    assert integrate_at_edges(velocity.half(), 2).dtype == torch.float32

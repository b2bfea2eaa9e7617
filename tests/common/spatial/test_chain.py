# SPDX-License-Identifier: Apache-2.0
"""Fields of several resolutions one after the other, against points that are followed one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from torch import Tensor

from common.spatial import chain_ddf, chain_map, compose, identity_grid

SIZES: dict[int, tuple[tuple[int, ...], ...]] = {2: ((4, 5), (7, 9), (7, 9)), 3: ((3, 4, 3), (6, 7, 5), (6, 7, 5))}


def fields(dims: int, batch: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(dims)
    return [torch.randn((batch, dims, *size), generator=generator, dtype=torch.float64) for size in SIZES[dims]]


def textbook(chain: Sequence[Tensor], size: Sequence[int], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (d, N) through the first element of the batch, in units of the extent."""
    places = points / (np.array(size) - 1)[:, None]
    for field in reversed(chain):
        extent = (np.array(field.shape[2:]) - 1)[:, None]
        moved = [map_coordinates(part, places * extent, order=1, mode="nearest") for part in field[0].numpy()]
        places = places + np.array(moved) / extent
    return places * (np.array(size) - 1)[:, None]


@pytest.mark.parametrize("dims", [2, 3])
def test_each_field_is_looked_up_on_its_own_grid(dims: int) -> None:
    chain = fields(dims)
    for size in (SIZES[dims][-1], tuple(n + 2 for n in SIZES[dims][-1])):
        grid = identity_grid(size, dtype=torch.float64)
        expected = textbook(chain, size, grid.flatten(2)[0].numpy())
        found = (grid + chain_ddf(chain, size))[0].flatten(1)
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_map_is_the_same_at_any_point(dims: int) -> None:
    chain, size = fields(dims), SIZES[dims][-1]
    # Some of them lie outside.
    points = 14 * torch.rand(2, 40, dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 4
    found = chain_map(chain, size)(points)[0]
    np.testing.assert_allclose(found.T.numpy(), textbook(chain, size, points[0].T.numpy()), rtol=0, atol=1e-12)
    grid = identity_grid(size, dtype=torch.float64)
    dense = chain_map(chain, size)(grid.flatten(2).mT.expand(2, -1, -1)).mT.view(2, *grid.shape[1:]) - grid
    torch.testing.assert_close(chain_ddf(chain, size), dense)


def test_one_field_is_itself_and_two_of_one_grid_are_composed() -> None:
    _, first, second = fields(3)
    assert torch.equal(chain_ddf([first], first.shape[2:]), first)
    torch.testing.assert_close(chain_ddf([first, second], first.shape[2:]), compose(first, second))


def test_a_coarse_field_is_not_enlarged_first() -> None:
    coarse, fine = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 5, 5)
    coarse[0, 0, 1] = 1
    fine[:, 0] = 0.5
    # Between the fine points a bent line of the coarse grid and its enlargement would differ at most.
    found = chain_ddf([coarse, fine], (5, 5))[0, 0, :, 0]
    expected = [0.5 + 2 * value for value in (0.25, 0.75, 0.75, 0.25, 0.0)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gradients_are_exact() -> None:
    chain = [field[:1].requires_grad_() for field in fields(2)]
    assert torch.autograd.gradcheck(lambda *parts: chain_ddf(parts, (7, 9)), chain)

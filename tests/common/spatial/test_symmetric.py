# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.spatial import bspline_bound, bspline_field, invert_contraction, sample_at, warp
from common.spatial.fixed_point import Solver
from common.spatial.symmetric import Halves, advance, at_level

EXACT = Solver(1e-12, 200)
SIZES = [(10, 9), (8, 7, 9)]


def update(size: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    control = torch.randn(2, len(size), *[-(-n // 2) for n in size], generator=generator, dtype=torch.float64).tanh()
    return bspline_field(0.99 * bspline_bound((2,) * len(size)) * control, size, 2)


def through(points: Tensor, *fields: Tensor) -> Tensor:
    """Points (B, N, d) moved by one field after the other."""
    for field in fields:
        points = points + sample_at(field, points).movedim(1, 2)
    return points


def as_points(ddf: Tensor) -> Tensor:
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in ddf.shape[2:]], indexing="ij")).double()
    return (grid + ddf).flatten(2).movedim(1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_halves_are_the_chains_of_updates_followed_point_by_point(size: tuple[int, ...]) -> None:
    known = Halves(*(update(size, seed) for seed in range(4)))
    a, b = update(size, 4), update(size, 5)
    a_inverse, b_inverse = (invert_contraction(field, EXACT) for field in (a, b))
    identity = as_points(torch.zeros_like(a))
    halves = advance(known, a, b, EXACT)
    torch.testing.assert_close(as_points(halves.left), through(identity, b_inverse, a, known.left))
    torch.testing.assert_close(as_points(halves.right), through(identity, a_inverse, b, known.right))
    torch.testing.assert_close(as_points(halves.left_inverse), through(identity, known.left_inverse, a_inverse, b))
    torch.testing.assert_close(as_points(halves.right_inverse), through(identity, known.right_inverse, b_inverse, a))
    there, back = halves.between()
    torch.testing.assert_close(as_points(there), through(identity, halves.right_inverse, halves.left))
    torch.testing.assert_close(as_points(back), through(identity, halves.left_inverse, halves.right))


@pytest.mark.parametrize("size", SIZES)
def test_identity_is_where_one_starts(size: tuple[int, ...]) -> None:
    a, b = update(size, 0), update(size, 1)
    nowhere = Halves(*[torch.zeros_like(a)] * 4)
    for first, second in zip(advance(None, a, b, EXACT), advance(nowhere, a, b, EXACT), strict=True):
        torch.testing.assert_close(first, second)


def test_exchanged_updates_exchange_the_halves_bit_by_bit() -> None:
    size = SIZES[1]
    known = Halves(*(update(size, seed) for seed in range(4)))
    a, b = update(size, 4), update(size, 5)
    exchanged = Halves(known.right, known.left, known.right_inverse, known.left_inverse)
    halves, others = advance(known, a, b, EXACT), advance(exchanged, b, a, EXACT)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert torch.equal(halves[i], others[j])


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
@pytest.mark.parametrize("size", [(16, 9), (8, 13, 9)])
def test_coarser_level_samples_at_its_centres(factor: int, size: tuple[int, ...]) -> None:
    ddf = update(size, 0)
    coarse = [-(-n // factor) for n in size]
    centres = torch.stack(torch.meshgrid(*[(torch.arange(n) + 0.5) * factor - 0.5 for n in coarse], indexing="ij"))
    expected = sample_at(ddf, centres.double().flatten(1).T.expand(2, -1, -1)).unflatten(2, coarse) / factor
    torch.testing.assert_close(at_level(ddf, factor), expected)


def test_gradient_to_a_coarser_level_is_exact() -> None:
    assert torch.autograd.gradcheck(lambda ddf: at_level(ddf, 2), update((5, 6), 0).requires_grad_())


def test_features_of_a_level_follow_the_image() -> None:
    # A shift of the image by one coarse voxel is one of its features by one voxel.
    features = torch.rand(1, 1, 4, 5)
    ddf = torch.zeros(1, 2, 8, 10)
    ddf[:, 0] = 2
    torch.testing.assert_close(warp(features, at_level(ddf, 2))[:, :, :3], features[:, :, 1:])

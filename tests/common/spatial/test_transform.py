# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from common.spatial import Grid, resize_image
from common.spatial.transform import Affine, Field, Function, Transform

OBLIQUE = torch.tensor(
    [[-1.8, 0.3, 0.2, 40.0], [0.25, 1.1, -0.4, -25.0], [0.1, 0.35, 2.4, 12.0], [0, 0, 0, 1]], dtype=torch.float64
)
FLIPPED = torch.tensor([[0, 0, -2.0, 30], [1.5, 0, 0, -20], [0, -1.2, 0, 25], [0, 0, 0, 1]], dtype=torch.float64)
MATRIX = torch.tensor(
    [[1.05, 0.1, 0, 3.1], [-0.08, 0.953, 0.05, -2.03], [0, 0.02, 1.1, 4], [0, 0, 0, 1]], dtype=torch.float64
)


def smooth_field(grid: Grid, size: float = 0.8, seed: int = 0) -> Field:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, *[max(2, n // 4) for n in grid.shape], generator=generator)
    return Field(grid, size * resize_image(coarse, grid.shape))


def wave(grid: Grid) -> Function:
    """Displacements that no field on the grid could hold, with a way back that is unlike them."""
    return Function(grid, lambda x: 0.6 * torch.sin(3 * x.flip(2)), lambda x: 0.1 * x - 0.4)


def centres(grid: Grid, margin: int = 0) -> Tensor:
    """World positions of the voxels, (N, 3)."""
    axes = [torch.arange(margin, n - margin, dtype=torch.float64) for n in grid.shape]
    return Affine(grid.affine).points(torch.cartesian_prod(*axes))


def points_by_ddf(grid: Grid, transform: Transform) -> Tensor:
    voxels = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid.shape))
    return Affine(grid.affine).points(voxels + transform.ddf(grid)[0].flatten(1).T)


@pytest.mark.parametrize("affine", [OBLIQUE, FLIPPED])
@pytest.mark.parametrize(
    "order",
    [
        "field",
        "affine",
        "field, affine",
        "affine, field",
        "field, affine, field",
        "wave",
        "affine, wave, affine, field",
    ],
)
def test_field_of_a_chain_is_what_its_points_say(affine: Tensor, order: str) -> None:
    fixed, other = Grid((10, 12, 9), affine), Grid((14, 13, 12), OBLIQUE)
    fields = [smooth_field(fixed), smooth_field(other, seed=1)]
    known: dict[str, Affine | Function] = {"affine": Affine(MATRIX), "wave": wave(other)}
    transform = Transform(tuple(known[name] if name in known else fields.pop(0) for name in order.split(", ")))
    torch.testing.assert_close(points_by_ddf(fixed, transform), transform.points(centres(fixed)), atol=2e-4, rtol=0)


def test_empty_chain_moves_nothing() -> None:
    grid = Grid((4, 5, 6), OBLIQUE)
    assert not Transform(()).ddf(grid).any()
    torch.testing.assert_close(Transform(()).inverse().points(centres(grid)), centres(grid))


def test_points_outside_a_field_stay() -> None:
    field = smooth_field(Grid((4, 5, 6), torch.eye(4)))
    outside = torch.tensor([[-0.6, 2, 2], [2, 4.6, 2], [100, 100, 100]], dtype=torch.float64)
    torch.testing.assert_close(field.points(outside), outside)
    torch.testing.assert_close(field.inverse_points(outside), outside)


def test_a_function_is_evaluated_where_points_lie() -> None:
    grid = Grid((4, 5, 6), OBLIQUE)
    voxels = torch.tensor([[0.3, 3.7, 2.2], [-8, 2.1, 5.4], [1.5, 9, 7]], dtype=torch.float64)
    points, inside = Affine(OBLIQUE).points(voxels), voxels.clamp(torch.zeros(3), torch.tensor([3, 4, 5]))
    there = Affine(OBLIQUE).points(voxels + 0.6 * torch.sin(3 * inside.flip(1)))
    back = Affine(OBLIQUE).points(voxels + 0.1 * inside - 0.4)
    function = wave(grid)
    for found, expected in (
        (function.points(points), there),
        (function.inverse_points(points), back),
        (function.inverse().points(points), back),
        (function.inverse().inverse_points(points), there),
    ):
        torch.testing.assert_close(found, expected)


def test_points_come_back() -> None:
    grid = Grid((14, 15, 16), OBLIQUE)
    transform = Transform((smooth_field(grid, 0.5), Affine(MATRIX)))
    inner = centres(grid, margin=3)
    moved = transform.points(inner)
    assert (moved - inner).norm(dim=1).mean() > 1
    torch.testing.assert_close(transform.inverse_points(moved), inner, atol=1e-5, rtol=0)
    # The inverse field is sampled on a grid: linear between its voxels.
    assert (transform.inverse().points(moved) - inner).norm(dim=1).max() < 0.5
    assert (transform.inverse().points(moved) - inner).norm(dim=1).mean() < 0.1


@pytest.mark.parametrize("shift", [(60.0, -7.0, 3.0), (4.4, -3.7, 2.6)])
def test_a_field_that_leaves_its_grid_comes_back(shift: tuple[float, float, float]) -> None:
    grid = Grid((14, 15, 16), OBLIQUE)
    field = Field(grid, smooth_field(grid, 0.3).ddf + torch.tensor(shift).view(1, 3, 1, 1, 1))
    inner = centres(grid, margin=3)
    moved = field.points(inner)
    torch.testing.assert_close(field.inverse_points(moved), inner, atol=1e-4, rtol=0)
    # Linear between the voxels of the inverse field.
    assert (field.inverse().points(moved) - inner).norm(dim=1).max() < 0.5


def test_order_of_a_chain() -> None:
    double = Affine(torch.diag(torch.tensor([2.0, 2, 2, 1])))
    shift = torch.eye(4)
    shift[:3, 3] = torch.tensor([1.0, 2, 3])
    one = torch.ones(1, 3)
    chain = Transform((double,)).then(Transform((Affine(shift),)))
    torch.testing.assert_close(chain.points(one), torch.tensor([[3.0, 4, 5]], dtype=torch.float64))
    torch.testing.assert_close(chain.inverse().points(chain.points(one)), one.double())


def test_a_field_that_folds_is_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    field = Field(Grid((12, 12, 12), torch.eye(4)), 6 * torch.randn(1, 3, 12, 12, 12, generator=generator))
    with caplog.at_level(logging.WARNING):
        field.inverse()
    assert "folds" in caplog.text


def test_a_point_that_nothing_maps_to_is_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    grid = Grid((20, 20, 20), torch.eye(4))
    to_plane = torch.zeros(1, 3, *grid.shape)
    to_plane[:, 0] = 3 - torch.arange(20.0).view(20, 1, 1)
    points = torch.tensor([[3.0, 5, 5], [8, 5, 5], [30, 5, 5]])
    with caplog.at_level(logging.WARNING):
        Field(grid, to_plane).inverse_points(points)
    assert "not exact at 1 points" in caplog.text


def test_a_field_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        Field(Grid((4, 5, 6), torch.eye(4)), torch.zeros(1, 3, 4, 5, 7))

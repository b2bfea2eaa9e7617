# SPDX-License-Identifier: Apache-2.0
"""Images of two dimensions as slices: nothing leaves the plane, and figures are those of two dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.spatial import Grid, jacobian_determinant, resample_ddf, warp, working_grid
from common.spatial.plane import laid_field, lifted, lifted_field, plane_affine
from common.spatial.transform import Affine, Field, Transform


def affine(angle: float = 0.3, height: float = 12.0) -> Tensor:
    """Of an axial slice that is turned in its plane and lies somewhere."""
    matrix = torch.eye(4, dtype=torch.float64)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix[:2, :2] = torch.tensor([[1.5 * cosine, -0.8 * sine], [1.5 * sine, 0.8 * cosine]])
    matrix[:3, 2] = torch.tensor([0.0, 0.0, 5.0])
    matrix[:3, 3] = torch.tensor([4.0, -7.0, height])
    return matrix


def test_only_the_plane_of_a_header_counts() -> None:
    grid = Grid.of((9, 7), affine())
    assert grid.flat and grid.dims == 2 and grid.shape == (9, 7, 1) and grid.same_as(Grid.of((9, 7), affine(height=-3)))
    assert grid.affine[2].tolist() == [0, 0, 1, 0] and grid.affine[:3, 2].tolist() == [0, 0, 1]
    for columns in (slice(0, 2), slice(3, 4)):
        assert torch.equal(grid.affine[:2, columns], affine()[:2, columns])
    assert not Grid.of((9, 7, 1), affine()).flat
    # A third axis that is damaged makes no difference.
    damaged = affine()
    damaged[:3, 2] = 0
    assert Grid.of((9, 7), damaged).same_as(grid, tolerance=0)
    with pytest.raises(InputError, match="three axes"):
        Grid((9, 7, 2), affine(), flat=True)


def test_a_slice_across_the_plane_is_laid_into_it() -> None:
    sagittal = affine()[[2, 0, 1, 3]]
    expected = torch.diag(torch.tensor([1.5, 0.8, 1, 1], dtype=torch.float64))
    torch.testing.assert_close(plane_affine(sagittal), expected)
    torch.testing.assert_close(plane_affine(expected), expected)


def test_the_working_grid_keeps_the_axes_of_a_flat_image() -> None:
    grid = Grid.of((9, 7), torch.diag(torch.tensor([-1.0, -2.0, 1.0, 1.0])))
    for spacing in ((0.5, 1.0), (0.5, 1.0, 3.0)):
        working = working_grid(grid, spacing)
        assert working.flat and working.shape == (18, 14, 1) and working.spacing == (0.5, 1.0, 1.0)
        assert working.affine.diagonal().tolist() == [-0.5, -1, 1, 1]


def test_fields_on_slices_are_those_of_two_dimensions() -> None:
    ddf = torch.randn(1, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    image = torch.rand(1, 1, 9, 7, generator=torch.Generator().manual_seed(1))
    slices = lifted_field(ddf, 2)
    assert torch.equal(laid_field(slices, 2), ddf) and slices.shape == (1, 3, 9, 7, 1)
    assert torch.equal(lifted_field(slices, 3), slices)
    torch.testing.assert_close(warp(lifted(image, 2), slices)[..., 0], warp(image, ddf))
    assert torch.equal(jacobian_determinant(slices)[..., 0], jacobian_determinant(ddf))
    moved = resample_ddf(slices, Grid.of((9, 7), affine()), Grid.of((12, 5), affine(0.9)))
    assert moved.shape == (1, 3, 12, 5, 1) and moved[:, 2].eq(0).all()


def test_transforms_of_two_and_three_dimensions_do_not_mix() -> None:
    flat = Field(Grid.of((4, 5), affine()), torch.zeros(1, 3, 4, 5, 1))
    volume = Field(Grid.of((4, 5, 1), affine()), torch.zeros(1, 3, 4, 5, 1))
    turn = Affine(torch.eye(4))
    assert Transform((turn, flat)).flat and Transform((flat, turn)).inverse().flat and not Transform((volume,)).flat
    assert Transform(()).then(Transform((flat,))).flat
    with pytest.raises(InputError, match="two dimensions cannot be joined"):
        Transform((flat,)).then(Transform((volume,)))

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.spatial import compose, identity_grid, invert, resize_image


def linear_field(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """x -> matrix (x - centre) + centre, as a displacement."""
    centre = (torch.tensor(shape, dtype=matrix.dtype) - 1) / 2
    moved = torch.einsum(
        "rc,c...->r...", matrix, (identity_grid(shape, dtype=matrix.dtype)[0].movedim(0, -1) - centre).movedim(-1, 0)
    )
    return (moved.movedim(0, -1) + centre).movedim(-1, 0)[None] - identity_grid(shape, dtype=matrix.dtype)


def smooth_field(shape: tuple[int, ...], size: float, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, len(shape), *[max(2, n // 4) for n in shape], generator=generator)
    return size * resize_image(coarse, shape)


@pytest.mark.parametrize("shape", [(9, 12), (6, 8, 7)])
def test_inverse_of_nothing_is_nothing(shape: tuple[int, ...]) -> None:
    inverse, residual = invert(torch.zeros(2, len(shape), *shape))
    assert inverse.shape == (2, len(shape), *shape) and residual.shape == (2, 1, *shape)
    assert not inverse.any() and not residual.any()


@pytest.mark.parametrize("shape", [(9, 12), (6, 8, 7)])
def test_inverse_of_a_shift_is_the_shift_back(shape: tuple[int, ...]) -> None:
    shift = torch.tensor([1.25, -2.5, 0.75])[: len(shape)]
    ddf = shift.view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    inverse, residual = invert(ddf)
    torch.testing.assert_close(inverse, -ddf)
    assert residual.max() < 1e-3


@pytest.mark.parametrize("stretch", [0.4, 1.5, 4.0])
@pytest.mark.parametrize("dims", [2, 3])
def test_inverse_of_a_linear_map_is_its_inverse_matrix(stretch: float, dims: int) -> None:
    # A stretch of more than 2 is where fixed-point iteration diverges.
    shape = (12, 10, 11)[:dims]
    matrix = torch.eye(dims, dtype=torch.float64) * stretch
    matrix[0, 1] = 0.2
    inverse, residual = invert(linear_field(matrix, shape), tolerance=1e-9)
    expected = linear_field(torch.linalg.inv(matrix), shape)
    # The field is known on its grid only: beyond, it is continued by its border values.
    centre = (torch.tensor(shape) - 1) / 2
    known = (expected + identity_grid(shape)).movedim(1, -1).sub(centre).abs().le(centre).all(-1)[0]
    assert known.sum() > 10
    torch.testing.assert_close(inverse[0][:, known], expected[0][:, known], atol=1e-8, rtol=0)
    assert residual.max() < 1e-9


@pytest.mark.parametrize("shape", [(24, 31), (16, 18, 20)])
def test_there_and_back_is_the_identity(shape: tuple[int, ...]) -> None:
    ddf = smooth_field(shape, 0.8, batch=2)
    inverse, residual = invert(ddf)
    assert residual.max() <= 1e-3
    # ddf(y + v(y)) + v(y), made by another route.
    torch.testing.assert_close(compose(ddf, inverse), torch.zeros_like(ddf), atol=2e-3, rtol=0)


def test_each_of_a_batch_is_its_own() -> None:
    ddf = smooth_field((12, 14), 0.5, batch=3)
    together, _ = invert(ddf)
    for n in range(3):
        torch.testing.assert_close(together[n : n + 1], invert(ddf[n : n + 1])[0])


def test_slabs_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    ddf = smooth_field((12, 10, 9), 0.8)
    whole, _ = invert(ddf)
    monkeypatch.setattr(sys.modules["common.spatial.invert"], "_SLAB_POINTS", 200)
    torch.testing.assert_close(invert(ddf)[0], whole)


def test_double_precision_stays() -> None:
    inverse, residual = invert(smooth_field((12, 10), 0.8).double(), tolerance=1e-10)
    assert inverse.dtype == residual.dtype == torch.float64
    assert residual.max() <= 1e-10


def test_half_precision_is_raised() -> None:
    assert invert(smooth_field((12, 10), 0.8).half())[0].dtype == torch.float32


def test_an_axis_of_one_voxel_is_no_obstacle() -> None:
    ddf = smooth_field((12, 10, 1), 0.5)
    inverse, residual = invert(ddf)
    assert residual.max() <= 1e-3
    torch.testing.assert_close(inverse[:, 2], -compose(ddf, inverse)[:, 2] + inverse[:, 2], atol=2e-3, rtol=0)


def test_folds_leave_a_residual_that_says_where_the_inverse_fails() -> None:
    ddf = smooth_field((20, 20, 20), 4.0)
    inverse, residual = invert(ddf)
    failed = residual > 1e-3
    assert failed.any() and not failed.all()
    left = compose(ddf, inverse).norm(dim=1, keepdim=True)
    torch.testing.assert_close(left, residual, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5), (4, 5, 3)])
def test_its_gradient(shape: tuple[int, ...]) -> None:
    # No voxel points at a node, where the slope of linear interpolation jumps.
    ddf = (smooth_field(shape, 0.3, batch=2).double() + 0.13).requires_grad_()
    assert torch.autograd.gradcheck(lambda field: invert(field, tolerance=1e-12)[0], ddf)


def test_no_field_is_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        invert(torch.zeros(1, 2, 4, 4, 4))

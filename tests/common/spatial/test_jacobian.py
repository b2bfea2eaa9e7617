# SPDX-License-Identifier: Apache-2.0
"""Jacobian determinant against affine closed forms and numpy.gradient."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.spatial import cell_determinant, identity_grid, jacobian_determinant

MATRICES = [
    np.array([[0.1, -0.3], [0.2, -0.05]]),
    np.array([[0.2, 0.1, -0.3], [0.0, -0.4, 0.25], [0.15, -0.2, 0.05]]),
]
SHAPES = [(5, 8), (4, 6, 5)]


def random_field(batch: int, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn((batch, len(shape), *shape), generator=generator, dtype=torch.float64)


def linear_field(matrix: NDArray[np.float64], shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.tensordot(matrix, np.indices(shape), 1))[None]


@pytest.mark.parametrize(("matrix", "shape"), list(zip(MATRICES, SHAPES, strict=True)))
def test_affine_field_has_the_determinant_of_its_matrix_in_every_voxel(
    matrix: NDArray[np.float64], shape: tuple[int, ...]
) -> None:
    expected = np.full((1, 1, *shape), np.linalg.det(np.eye(len(matrix)) + matrix))
    np.testing.assert_allclose(jacobian_determinant(linear_field(matrix, shape) + 3).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [*SHAPES, (2, 2, 3)])
@pytest.mark.parametrize("slab", [1, 60, 1 << 18])
def test_determinant_equals_that_of_numpy_gradient_whatever_the_slab(
    shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.spatial.slabs._SLAB_VOXELS", slab)
    ddf = random_field(2, shape)
    for field, determinant in zip(ddf.numpy(), jacobian_determinant(ddf).numpy(), strict=True):
        jacobian = np.stack([np.stack(np.gradient(field[k] + np.indices(shape)[k]), -1) for k in range(len(shape))], -2)
        np.testing.assert_allclose(determinant[0], np.linalg.det(jacobian), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_reflection_along_one_axis_is_minus_one(shape: tuple[int, ...], axis: int) -> None:
    ddf = torch.zeros(1, len(shape), *shape)
    ddf[:, axis] = -2 * identity_grid(shape)[:, axis]
    torch.testing.assert_close(jacobian_determinant(ddf), torch.full((1, 1, *shape), -1.0))


def test_only_the_folded_place_is_negative() -> None:
    ddf = torch.zeros(1, 2, 9, 9)
    ddf[0, 0, 3, 4], ddf[0, 0, 5, 4] = 2.0, -2.0  # the neighbours of (4, 4) change places
    folded = (jacobian_determinant(ddf) < 0).nonzero().tolist()
    assert folded == [[0, 0, 4, 4]]


def test_float32_stays_and_less_becomes_float32() -> None:
    ddf = random_field(1, (4, 5, 3))
    assert jacobian_determinant(ddf).dtype == torch.float64
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert jacobian_determinant(ddf.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)])
def test_gradient_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(jacobian_determinant, (random_field(2, shape).requires_grad_(),))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_has_the_determinant_of_the_map_inside_its_plane(axis: int) -> None:
    field = random_field(3, (6, 7))
    (a, b), (c, d) = (np.gradient(component) for component in field[0].numpy())
    expected = (1 + a) * (1 + d) - b * c
    slice_ = torch.stack([*field[0, :axis], 5 * torch.rand(6, 7).double(), *field[0, axis:]]).unsqueeze(1 + axis)[None]
    np.testing.assert_allclose(jacobian_determinant(slice_).squeeze().numpy(), expected, atol=1e-12)
    assert float(jacobian_determinant(torch.rand(1, 3, 1, 1, 1)).item()) == 1


def test_a_tensor_without_one_channel_per_axis_is_no_field() -> None:
    with pytest.raises(ValueError, match="expected"):
        jacobian_determinant(torch.zeros(1, 2, 4, 4, 5))


@pytest.mark.parametrize("shape", SHAPES)
def test_volume_of_cells_is_that_of_the_edges_to_the_neighbours_before(shape: tuple[int, ...]) -> None:
    ddf = random_field(2, shape)
    found = cell_determinant(ddf)
    assert found.shape == (2, 1, *(n - 1 for n in shape))
    dims = len(shape)
    for b, index in itertools.product(range(2), np.ndindex(*found.shape[2:])):
        here = np.array(index) + 1

        def place(voxel: NDArray[np.int64], b: int = b) -> NDArray[np.float64]:
            moved: NDArray[np.float64] = voxel + ddf[(b, slice(None), *voxel)].numpy()
            return moved

        edges = np.stack([place(here) - place(here - np.eye(dims, dtype=int)[axis]) for axis in range(dims)])
        assert float(found[(b, 0, *index)]) == pytest.approx(np.linalg.det(edges), abs=1e-12)

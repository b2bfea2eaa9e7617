# SPDX-License-Identifier: Apache-2.0
"""Resampling corner to corner: exact on whatever is linear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from common.spatial import identity_grid, resize_ddf, resize_image, warp

SIZES = [((5, 9), (9, 5)), ((6, 4), (11, 7)), ((5, 9, 7), (9, 5, 13)), ((8, 6, 4), (4, 3, 2))]


def positions(old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Where the voxels of the new grid lie, in voxels of the old one: (d, *new) float64."""
    axes = [np.linspace(0, n - 1, m) for n, m in zip(old, new, strict=True)]
    return torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij")))


def linear(x: Tensor) -> Tensor:
    """A linear image at the positions x (d, ...)."""
    return 0.5 + torch.einsum("k,k...->...", torch.arange(1, len(x) + 1).to(x), x)


def affine(x: Tensor) -> Tensor:
    """An affine displacement at the positions x (d, ...)."""
    return torch.stack([0.1 * x[k] - 0.05 * x[k - 1] + 0.3 * k for k in range(len(x))])


def grid(shape: Sequence[int]) -> Tensor:
    return identity_grid(shape, dtype=torch.float64)[0]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_linear_image_stays_linear_from_corner_to_corner(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    resized = resize_image(linear(grid(old))[None, None], new)
    torch.testing.assert_close(resized[0, 0], linear(positions(old, new)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_affine_field_is_resampled_and_rescaled_with_the_grid(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    factor = torch.tensor([(m - 1) / (n - 1) for n, m in zip(old, new, strict=True)], dtype=torch.float64)
    expected = affine(positions(old, new)) * factor.view(-1, *[1] * len(old))
    torch.testing.assert_close(resize_ddf(affine(grid(old))[None], new)[0], expected, rtol=0, atol=1e-12)


def test_resizing_a_field_does_not_change_where_it_points() -> None:
    old, new = (6, 5, 7), (11, 13, 9)
    image = linear(grid(old))[None, None]
    # Towards the centre, so that nothing leaves the image.
    ddf = 0.2 * (torch.tensor([2.5, 2.0, 3.0]).double().view(3, 1, 1, 1) - grid(old))[None]
    fine = warp(resize_image(image, new), resize_ddf(ddf, new))
    torch.testing.assert_close(fine, resize_image(warp(image, ddf), new), rtol=0, atol=1e-10)


def test_refined_field_comes_back_unchanged() -> None:
    generator = torch.Generator().manual_seed(0)
    ddf = torch.randn((2, 3, 4, 5, 6), generator=generator, dtype=torch.float64)
    there_and_back = resize_ddf(resize_ddf(ddf, (7, 9, 11)), (4, 5, 6))
    torch.testing.assert_close(there_and_back, ddf, rtol=0, atol=1e-12)


def test_axis_of_one_voxel_keeps_its_values() -> None:
    ddf = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1).expand(1, 2, 1, 4)
    resized = resize_ddf(ddf, (6, 7))
    assert (resized[:, 0] == 3).all()
    torch.testing.assert_close(resized[:, 1], torch.full((1, 6, 7), 10.0))
    assert (resize_ddf(torch.ones(1, 2, 5, 5), (1, 5)) == 1).all()


def test_same_size_changes_nothing() -> None:
    image = torch.rand(1, 2, 5, 6)
    assert torch.equal(resize_image(image, (5, 6)), image)
    assert torch.equal(resize_ddf(image, (5, 6)), image)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_nearest_keeps_labels_and_their_dtype(dtype: torch.dtype) -> None:
    label = torch.tensor([[0, 7, 3], [9, 9, 1]], dtype=dtype)[None, None]
    fine = resize_image(label, (3, 5), mode="nearest")
    assert fine.dtype == dtype
    assert set(fine.unique().tolist()) <= {0, 1, 3, 7, 9}
    assert torch.equal(fine[..., ::2, ::2], label)


@pytest.mark.parametrize(("old", "new"), [((7, 6), (5, 9)), ((5, 6, 4), (8, 3, 7))])
def test_nearest_takes_the_closest_voxel(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    label = torch.arange(int(np.prod(old))).view(1, 1, *old)
    resized = resize_image(label, new, mode="nearest")[0, 0]
    chosen = np.stack(np.unravel_index(resized.numpy(), old))
    assert np.abs(chosen - positions(old, new).numpy()).max() <= 0.5


def test_gradient_flows_through_a_resized_field() -> None:
    ddf = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: resize_ddf(u, (5, 3)), (ddf,))


def test_size_of_another_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be resized"):
        resize_image(torch.zeros(1, 1, 4, 5), (4, 5, 6))
    with pytest.raises(ValueError, match="cannot be resized"):
        resize_image(torch.zeros(1, 1, 4), (5,))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode is 'cubic'"):
        resize_image(torch.zeros(1, 1, 4, 5), (2, 2), mode="cubic")


def test_a_tensor_without_one_channel_per_axis_is_no_field() -> None:
    with pytest.raises(ValueError, match="expected"):
        resize_ddf(torch.zeros(1, 3, 4, 5), (2, 2))

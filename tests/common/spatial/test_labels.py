# SPDX-License-Identifier: Apache-2.0
"""Label warping against SciPy, the reference of the challenges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

import common.spatial.labels as labels_module
from common.checks import InputError
from common.spatial import identity_grid, warp
from common.spatial.labels import sample_labels_at, warp_labels, warp_labels_linear, warp_labels_to_even

SHAPES = [(9, 11), (7, 9, 8)]


def case(
    shape: tuple[int, ...], batch: int = 2, seed: int = 0, scale: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 6, (batch, 1, *shape), generator=generator, dtype=torch.uint8)
    ddf = torch.randn(batch, len(shape), *shape, generator=generator) * scale
    # Half voxels and whole ones, where rounding and the border rule decide.
    return label, torch.where(torch.rand(ddf.shape, generator=generator) < 0.5, (ddf * 2).round() / 2, ddf)


def scipy_warp(label: torch.Tensor, ddf: torch.Tensor) -> np.ndarray:
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in ddf.shape[2:]], indexing="ij"))
    pairs = zip(label[:, 0].numpy(), ddf.numpy().astype(np.float64), strict=True)
    return np.stack([map_coordinates(one, grid + field, order=0)[None] for one, field in pairs])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slab", [1, 50, 1 << 18])
def test_warped_labels_equal_scipys_map_coordinates_whatever_the_slab(
    shape: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels_module, "_SLAB_VOXELS", slab)
    label, ddf = case(shape)
    np.testing.assert_array_equal(warp_labels(label, ddf).numpy(), scipy_warp(label, ddf))


@pytest.mark.parametrize("shape", SHAPES)
def test_labels_at_points_are_those_of_the_warp(shape: tuple[int, ...]) -> None:
    label, ddf = case(shape)
    points = (identity_grid(shape, dtype=torch.float64) + ddf).flatten(2).mT
    before = points.clone()
    torch.testing.assert_close(sample_labels_at(label, points), warp_labels(label, ddf).flatten(2), rtol=0, atol=0)
    assert torch.equal(points, before)


def test_points_that_do_not_belong_to_the_labels_are_refused() -> None:
    label = torch.zeros(2, 1, 3, 4, dtype=torch.uint8)
    for shape in ((1, 5, 2), (2, 5, 3), (2, 5)):
        with pytest.raises(InputError, match="the points"):
            sample_labels_at(label, torch.zeros(shape))
    with pytest.raises(InputError, match="must have an integer dtype"):
        sample_labels_at(label.float(), torch.zeros(2, 5, 2))


def test_label_and_field_may_lie_on_grids_of_different_size() -> None:
    label, _ = case((12, 10, 6))
    _, ddf = case((7, 9, 8))
    np.testing.assert_array_equal(warp_labels(label, ddf).numpy(), scipy_warp(label, ddf))


def test_half_voxels_round_up_and_the_slightest_step_outside_is_background() -> None:
    line = torch.arange(1, 6).view(1, 1, 5, 1).expand(1, 1, 5, 2)
    for coordinate, expected in [
        (0.5, 2),
        (1.5, 3),
        (2.5, 4),
        (4.0, 5),
        (4.0 + 1e-7, 0),
        (0.0, 1),
        (-1e-7, 0),
        (1.49, 2),
    ]:
        ddf = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
        ddf[0, 0] = coordinate
        assert warp_labels(line, ddf).item() == expected, coordinate


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_zero_displacement_is_the_identity_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    label = case((5, 6, 7))[0].to(dtype)
    for function in (warp_labels, warp_labels_linear):
        warped = function(label, torch.zeros(2, 3, 5, 6, 7))
        assert warped.dtype == dtype and torch.equal(warped, label)


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_vote_equals_the_argmax_of_the_warped_one_hot_map(shape: tuple[int, ...]) -> None:
    label, ddf = case(shape, scale=1.5)
    one_hot = torch.stack([(label[:, 0] == k) for k in range(6)], dim=1).double()
    votes = warp(one_hot, ddf.double(), padding_mode="zeros")
    # Ties are decided by rounding in the one-hot form: compare where the winner is clear.
    top = votes.topk(2, dim=1).values
    clear = top[:, :1] - top[:, 1:] > 1e-9
    assert clear.double().mean() > 0.5
    assert torch.equal(warp_labels_linear(label, ddf)[clear], votes.argmax(1, keepdim=True)[clear].to(torch.uint8))


def test_ties_of_the_linear_vote_go_to_the_smaller_label_and_far_outside_is_background() -> None:
    label = torch.tensor([[5, 3, 7]]).view(1, 1, 1, 3).expand(1, 1, 2, 3)
    ddf = torch.zeros(1, 2, 2, 3)
    ddf[0, 1] = torch.tensor([0.5, 0.5, 9.0])
    assert warp_labels_linear(label, ddf)[0, 0].tolist() == [[3, 3, 0]] * 2


def test_floating_labels_and_wrong_shapes_are_refused() -> None:
    label, ddf = case((5, 6, 7))
    with pytest.raises(InputError, match="integer dtype"):
        warp_labels(label.float(), ddf)
    with pytest.raises(InputError, match="must be \\(2, 1, \\*spatial\\)"):
        warp_labels(label[:1], ddf)
    with pytest.raises(ValueError, match="ddf has shape"):
        warp_labels(label, ddf[:, :2])


def test_halves_go_to_the_even_neighbour_and_what_is_outside_is_zero() -> None:
    label = torch.arange(1, 6, dtype=torch.uint8).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    places = torch.tensor([0.5, 1.5, 2.5, 4.0, 4.00001])
    ddf = torch.stack([torch.zeros(3, 5), (places - torch.arange(5)).expand(3, 5)])[None]
    assert warp_labels_to_even(label, ddf)[0, 0].tolist() == [[1, 3, 3, 5, 0]] * 3
    assert warp_labels_to_even(label, -ddf - 1e-4)[0, 0, :, 0].tolist() == [0] * 3

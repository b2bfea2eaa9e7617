# SPDX-License-Identifier: Apache-2.0
"""Losses of maps at random points, and of codes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses import JacobianConsistencyLoss, LatentLoss, NCCLoss, SampledLoss
from common.losses.sampled import random_points
from common.spatial import field_map, identity_grid, warp

DRAW = torch.tensor([[5, 2, 9], [5, 2, 10]])


def affine(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda points: points @ matrix.T + 1


def test_points_fill_the_image_and_depend_on_draw_and_stream_alone() -> None:
    points = random_points(DRAW, 20_000, (9, 5))
    assert points.shape == (1, 20_000, 2)
    unit = points[0] / torch.tensor([8.0, 4.0])
    assert unit.min() >= 0 and unit.max() <= 1
    for axis in range(2):
        torch.testing.assert_close(unit[:, axis].histc(10, 0, 1) / 20_000, torch.full((10,), 0.1), atol=0.01, rtol=0)
    assert torch.corrcoef(unit.T)[0, 1].abs() < 0.02
    assert torch.equal(random_points(DRAW[:1], 20_000, (9, 5)), points)
    others = [random_points(DRAW + 1, 9, (9, 5)), random_points(DRAW, 9, (9, 5), stream=1), points[:, :9]]
    assert len({tuple(other.flatten().tolist()) for other in others}) == 3


@pytest.mark.parametrize("size", [(7, 8), (5, 6, 4)])
def test_at_all_voxels_it_is_the_loss_of_the_warped_image(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    moving, fixed, ddf = torch.rand(2, 1, *size), torch.rand(2, 1, *size), torch.randn(2, len(size), *size)
    found = SampledLoss(NCCLoss()).at(field_map(ddf), moving, fixed, identity_grid(size).flatten(2).mT)
    torch.testing.assert_close(found, NCCLoss()(warp(moving, ddf, padding_mode="zeros"), fixed))


def test_number_of_points_follows_the_volume_up_to_the_most() -> None:
    class Count(nn.Module):
        def forward(self, pred: Tensor, target: Tensor) -> Tensor:
            return torch.tensor(pred.shape[2])

    image = torch.zeros(1, 1, 20, 30)
    for fraction, most, expected in ((0.02, 100, 12), (0.5, 100, 100), (1e-9, 100, 1)):
        assert SampledLoss(Count(), fraction, most)(lambda points: points, image, image, DRAW[:1]) == expected
    kept: list[int] = []

    def identity(points: Tensor) -> Tensor:
        kept.append(points.shape[1])
        return points

    for fraction, expected in ((1e-4, 10), (0.1, 60), (1.0, 500)):
        JacobianConsistencyLoss(fraction)(identity, identity, image, DRAW[:1])
        assert set(kept) == {expected}
        kept.clear()


def test_consistency_of_linear_maps_is_that_of_their_matrices() -> None:
    torch.manual_seed(0)
    one, other = torch.rand(3, 3), torch.rand(3, 3)
    image = torch.zeros(2, 1, 5, 5, 5)
    found = JacobianConsistencyLoss()(affine(one), affine(other), image, DRAW)
    torch.testing.assert_close(found, (other @ one - torch.eye(3)).square().mean())
    there = torch.eye(3) + 0.1 * one
    left = JacobianConsistencyLoss()(affine(there), affine(torch.linalg.inv(there)), image, DRAW)
    assert left < 1e-10


def test_consistency_is_measured_in_units_of_the_extent() -> None:
    # 1 voxel of 4 along the rows per voxel of 10 along the columns: 2.5 extents per extent.
    shear = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    found = JacobianConsistencyLoss()(affine(shear), lambda points: points, torch.zeros(1, 1, 5, 11), DRAW)
    torch.testing.assert_close(found, torch.tensor(2.5**2 / 4))


def test_consistency_of_dense_fields_has_the_gradient_of_differences() -> None:
    torch.manual_seed(0)
    fields = [(0.3 * torch.randn(2, 2, 6, 7, dtype=torch.float64)).requires_grad_() for _ in range(2)]
    image, points = torch.zeros(2, 1, 6, 7), random_points(DRAW, 30, (6, 7)).double()

    def loss(there: Tensor, back: Tensor) -> Tensor:
        return JacobianConsistencyLoss().at(field_map(there), field_map(back), image, points)

    assert torch.autograd.gradcheck(loss, fields)


def test_length_of_codes_is_that_of_the_definition() -> None:
    latent, local = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2, 2, 1)
    local[0, :, 0, 0] = torch.tensor([6.0, 8.0])
    assert LatentLoss()(latent.requires_grad_(), local.requires_grad_()) == 5 / 2 + 10 / 4
    LatentLoss()(latent, local).backward()
    assert latent.grad is not None and latent.grad.isfinite().all()


def test_constant_images_give_no_nan() -> None:
    shift = torch.zeros(1, requires_grad=True)
    loss = SampledLoss(NCCLoss())(lambda points: points + shift, *[torch.ones(1, 1, 20, 20)] * 2, DRAW[:1])
    loss.backward()
    assert loss == 1 and shift.grad is not None and shift.grad.isfinite()


@pytest.mark.parametrize("make", [lambda: SampledLoss(NCCLoss(), 0.0), lambda: JacobianConsistencyLoss(most=0)])
def test_losses_without_points_are_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match="give a fraction up to 1, and one or more"):
        make()

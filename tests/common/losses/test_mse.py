# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses import MSELoss


def case(dims: int, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    size = (5, 4, 6)[:dims]
    images = torch.rand((2, 2, channels, *size), generator=generator, dtype=torch.float64)
    weight = torch.rand((2, 1, *size), generator=generator, dtype=torch.float64)
    return images[0], images[1], torch.where(weight > 0.4, weight, 0)


def plain(pred: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    means = [(w * (p - t).square()).sum() / w.expand_as(p).sum() for p, t, w in zip(pred, target, weight, strict=True)]
    return torch.stack(means).mean()


@pytest.mark.parametrize("dims", [2, 3])
def test_value_and_gradients_are_those_of_the_definition(dims: int) -> None:
    pred, target, weight = case(dims)
    pred.requires_grad_()
    target.requires_grad_()
    for value, expected in (
        (MSELoss()(pred, target), nn.functional.mse_loss(pred, target)),
        (MSELoss()(pred, target, weight), plain(pred, target, weight)),
    ):
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(
            torch.autograd.grad(value, (pred, target)), torch.autograd.grad(expected, (pred, target))
        )
    assert torch.autograd.gradcheck(MSELoss(), (pred, target.detach(), weight))
    assert torch.autograd.gradcheck(MSELoss(), (pred.detach(), target, weight))


def test_weights_of_one_are_no_weights_and_voxels_of_weight_0_may_hold_anything() -> None:
    pred, target, weight = (x.float() for x in case(3))
    torch.testing.assert_close(MSELoss()(pred, target, torch.ones_like(weight)), MSELoss()(pred, target))
    filled = pred.where(weight > 0, 1e30).requires_grad_()
    value = MSELoss()(filled, target, weight)
    (gradient,) = torch.autograd.grad(value, filled)
    assert torch.equal(value, MSELoss()(pred, target, weight))
    assert torch.equal(gradient == 0, (weight == 0).expand_as(gradient))


def test_a_sample_without_weights_differs_by_nothing() -> None:
    pred, target, weight = case(2)
    weight[1] = 0
    torch.testing.assert_close(MSELoss()(pred, target, weight), plain(pred[:1], target[:1], weight[:1]) / 2)


def test_half_precision_is_computed_in_float32() -> None:
    pred, target, weight = case(2)
    value = MSELoss()(pred.half().requires_grad_(), target.half(), weight > 0)
    assert value.dtype == torch.float32


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="MSELoss got pred of shape"):
        MSELoss()(torch.rand(1, 1, 3, 4), torch.rand(1, 1, 4, 3))
    with pytest.raises(InputError, match=r"a weight of shape \(1, 1, 4, 3\); give one weight per voxel"):
        MSELoss()(torch.rand(1, 1, 3, 4), torch.rand(1, 1, 3, 4), torch.rand(1, 1, 4, 3))

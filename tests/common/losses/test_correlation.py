# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.losses import NCCLoss


@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (2, 1, 3, 4, 5), (3, 2, 7)])
def test_value_is_that_of_numpy_and_the_gradient_exact(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    flat = [image.flatten(2).flatten(0, 1).numpy() for image in (pred, target)]
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(*flat, strict=True)])
    assert NCCLoss()(pred, target).item() == pytest.approx(1 - expected, abs=1e-12)
    assert torch.autograd.gradcheck(NCCLoss(), (pred.requires_grad_(), target.requires_grad_()))


@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (1, 1, 3, 4, 5)])
def test_weights_are_those_of_numpy_and_the_gradient_exact(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    pred, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand((shape[0], 1, *shape[2:]), generator=generator, dtype=torch.float64)
    expected = []
    for x, y, w in zip(pred, target, weight, strict=True):
        covariances = [np.cov(one.ravel(), other.ravel(), aweights=w.ravel()) for one, other in zip(x, y, strict=True)]
        expected += [c[0, 1] / np.sqrt(c[0, 0] * c[1, 1]) for c in covariances]
    assert NCCLoss()(pred, target, weight).item() == pytest.approx(1 - np.mean(expected), abs=1e-12)
    images = pred.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(lambda *pair: NCCLoss()(*pair, weight), images)


def test_voxels_of_weight_zero_are_not_seen() -> None:
    generator = torch.Generator().manual_seed(2)
    pred, target = (torch.rand((1, 1, 8, 9), generator=generator) for _ in range(2))
    weight = torch.ones(1, 1, 8, 9)
    weight[..., 5:] = 0
    spoiled = torch.where(weight > 0, pred, 7.0).requires_grad_()
    loss = NCCLoss()(spoiled, target, weight)
    loss.backward()
    assert loss.item() == pytest.approx(NCCLoss()(pred[..., :5], target[..., :5]).item(), abs=1e-6)
    assert spoiled.grad is not None and spoiled.grad[..., 5:].eq(0).all() and spoiled.grad[..., :5].ne(0).any()
    assert NCCLoss()(pred, target, 0 * weight).item() == 1


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_constant_image_resembles_nothing(value: float) -> None:
    pred, target = torch.full((2, 1, 9, 9, 9), value), torch.rand(2, 1, 9, 9, 9)
    pred[1] = target[1]
    pred.requires_grad_()
    loss = NCCLoss()(pred, target)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-6) and pred.grad is not None and pred.grad[0].eq(0).all()


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="resample one to the other's grid"):
        NCCLoss()(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 5, 4))
    with pytest.raises(InputError, match="one weight per voxel"):
        NCCLoss()(torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5), torch.zeros(1, 2, 4, 5))

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.losses import LNCCLoss, LocalAndGlobalLoss, NCCLoss


@pytest.mark.parametrize("shape", [(2, 2, 5, 6), (2, 1, 3, 4, 5), (3, 2, 7)])
def test_value_is_that_of_numpy_and_the_gradient_exact(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    flat = [image.flatten(2).flatten(0, 1).numpy() for image in (pred, target)]
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(*flat, strict=True)])
    assert NCCLoss()(pred, target).item() == pytest.approx(1 - expected, abs=1e-12)
    assert torch.autograd.gradcheck(NCCLoss(), (pred.requires_grad_(), target.requires_grad_()))


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


def test_weights_are_those_of_numpy_and_the_gradient_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn((2, 2, 2, 5, 6), generator=generator, dtype=torch.float64)
    weight = torch.rand((2, 1, 5, 6), generator=generator, dtype=torch.float64)
    weight[1] = 0
    found = [
        np.cov(pred[0, c].ravel(), target[0, c].ravel(), aweights=weight[0, 0].ravel(), bias=True) for c in range(2)
    ]
    expected = sum(cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1]) for cov in found) / 4
    assert NCCLoss()(pred, target, weight).item() == pytest.approx(1 - expected, abs=1e-12)
    loss = LocalAndGlobalLoss(3)
    images = pred.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(lambda *pair: loss(*pair, weight), images)


def test_windows_and_whole_images_add_up_and_the_latter_know_what_is_bright() -> None:
    pred, target = torch.rand((2, 1, 1, 9, 8, 7), generator=torch.Generator().manual_seed(0))
    expected = LNCCLoss(kernel_size=5)(pred, target) + 2 * NCCLoss()(pred, target)
    torch.testing.assert_close(LocalAndGlobalLoss()(pred, target), expected)
    torch.testing.assert_close(LocalAndGlobalLoss()(3 * target, target), torch.tensor(0.0), atol=1e-4, rtol=0)
    assert LocalAndGlobalLoss()(-target, target) > 3.9

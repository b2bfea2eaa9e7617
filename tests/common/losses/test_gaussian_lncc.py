# SPDX-License-Identifier: Apache-2.0
"""Correlation in Gaussian windows against its definition, voxel by voxel, and its gradient."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.checks import InputError
from common.losses import GaussianLNCCLoss


def textbook(i: NDArray[np.float64], j: NDArray[np.float64], sigma: int) -> NDArray[np.float64]:
    """l of one channel: weighted moments of the windows cut out of the zero-padded images."""
    reach = 2 * sigma
    tap = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights = np.array(1.0)
    for _ in range(i.ndim):
        weights = np.multiply.outer(weights, tap / tap.sum())
    found = np.empty(i.shape)
    i, j = np.pad(i, reach), np.pad(j, reach)
    for corner in itertools.product(*(range(n) for n in found.shape)):
        window = tuple(slice(c, c + 2 * reach + 1) for c in corner)

        def mean(values: NDArray[np.float64]) -> float:
            return float((weights * values).sum())

        x, y = i[window], j[window]
        a, b = (max(mean(z * z) - mean(z) ** 2, 0) + 1e-5 for z in (x, y))
        found[corner] = (mean(x * y) - mean(x) * mean(y)) / np.sqrt(a * b)
    return found


def pair(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_value_is_that_of_the_definition(shape: tuple[int, ...], squared: bool) -> None:
    pred, target = pair(2, 2, *shape)
    mask = (torch.rand((2, 1, *shape), generator=torch.Generator().manual_seed(0)) > 0.4).float() * 3
    i, j = pred.numpy(), target.numpy()
    lncc = np.stack([[textbook(i[b, c], j[b, c], 1) for c in range(2)] for b in range(2)])
    lncc = lncc**2 if squared else lncc
    loss = GaussianLNCCLoss(1, squared)
    assert loss(pred, target).item() == pytest.approx(1 - lncc.mean(), abs=1e-12)
    # Where the mask is 0 the correlation counts as 0.
    assert loss(pred, target, mask).item() == pytest.approx(1 - (lncc * (mask.numpy() != 0)).mean(), abs=1e-12)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_exact(squared: bool, masked: bool) -> None:
    images = [image.requires_grad_() for image in pair(2, 1, 5, 6)]
    mask = [(images[0].detach() > 0.5).float()] if masked else []
    loss: Callable[..., Tensor] = GaussianLNCCLoss(2, squared)
    assert torch.autograd.gradcheck(lambda x, y: loss(x, y, *mask), images)


def test_constant_images_have_neither_nan_nor_gradient() -> None:
    for value in (0.0, 0.7):
        pred = torch.full((1, 1, 8, 9), value, requires_grad=True)
        loss = GaussianLNCCLoss(2)(pred, torch.zeros(1, 1, 8, 9))
        loss.backward()
        assert loss.item() == pytest.approx(1, abs=1e-6) and pred.grad is not None and pred.grad.isfinite().all()


def test_half_precision_is_computed_in_float32() -> None:
    pred, target = (image.half() for image in pair(1, 1, 6, 7))
    torch.testing.assert_close(GaussianLNCCLoss(1)(pred, target), GaussianLNCCLoss(1)(pred.float(), target.float()))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="sigma=0.5; give a whole number"):
        GaussianLNCCLoss(0.5)  # type: ignore[arg-type]  # what a configuration may say
    with pytest.raises(InputError, match="resample one to the other's grid"):
        GaussianLNCCLoss()(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 5, 4))

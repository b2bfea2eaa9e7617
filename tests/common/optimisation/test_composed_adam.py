# SPDX-License-Identifier: Apache-2.0
"""Composed steps against the formula written out, their length, and that they fold nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.optimisation import ComposedAdam
from common.spatial import compose, gaussian_filter, jacobian_determinant


def field(*size: int, batch: int = 1) -> Tensor:
    torch.manual_seed(sum(size))
    return gaussian_filter(torch.randn(batch, len(size), *size), 2.0).requires_grad_()


@pytest.mark.parametrize("size", [(9, 8), (6, 7, 8)])
def test_two_steps_are_those_of_the_formula(size: tuple[int, ...]) -> None:
    ddf = field(*size, batch=2)
    gradients = [torch.randn_like(ddf) for _ in range(2)]
    expected, mean, square = ddf.detach().clone(), torch.zeros_like(ddf), torch.zeros_like(ddf)
    for count, gradient in enumerate(gradients, start=1):
        smooth = gaussian_filter(gradient, 1.0)
        mean, square = 0.9 * mean + 0.1 * smooth, 0.99 * square + 0.01 * smooth**2
        direction = (mean / (1 - 0.9**count)) / (square / (1 - 0.99**count)).sqrt()
        step = gaussian_filter(-direction, 0.6)
        longest = torch.stack([each.norm(dim=0).max().clamp(min=1) for each in step]).view(2, *[1] * (len(size) + 1))
        expected = gaussian_filter(compose(expected, 0.3 * step / longest), 0.5, inside=True)
    optimiser = ComposedAdam([ddf], 0.3, 1.0, 0.6, 0.5)
    for gradient in gradients:
        ddf.grad = gradient
        optimiser.step()
    # Of float32, after two divisions by roots of small numbers.
    torch.testing.assert_close(ddf.detach(), expected, atol=1e-5, rtol=1e-4)


def test_no_step_is_longer_than_the_rate() -> None:
    ddf = torch.zeros(1, 2, 12, 12, requires_grad=True)
    ddf.grad = torch.randn(1, 2, 12, 12) * 1e6
    ComposedAdam([ddf], 0.4, 0.0, 0.0, 0.0).step()
    assert ddf.detach().norm(dim=1).max().item() == pytest.approx(0.4, rel=1e-5)  # the rounding of float32


def test_what_has_no_gradient_stays() -> None:
    moves, stays = (torch.zeros(1, 2, 6, 6, requires_grad=True) for _ in range(2))
    moves.grad = torch.ones_like(moves)
    ComposedAdam([moves, stays]).step()
    assert moves.abs().max() > 0 and stays.eq(0).all()


def test_a_field_is_not_pulled_to_nothing_at_the_border() -> None:
    ddf = torch.full((1, 3, 8, 9, 2), 1.5, requires_grad=True)
    ddf.grad = torch.zeros_like(ddf)
    ComposedAdam([ddf], 0.5, 0.7, 0.7, 1.0).step()
    torch.testing.assert_close(ddf.detach(), torch.full_like(ddf, 1.5))


def test_a_hundred_steps_of_noise_fold_nothing() -> None:
    torch.manual_seed(0)
    ddf = torch.zeros(1, 3, 12, 12, 12, requires_grad=True)
    optimiser = ComposedAdam([ddf], field_sigma=0.5)
    # Nothing pushes all of the image out of it.
    push = torch.nn.functional.pad(10 * gaussian_filter(torch.randn(1, 3, 8, 8, 8), 1.5), [2] * 6)
    for _ in range(100):
        ddf.grad = push + torch.randn_like(ddf)
        optimiser.step()
    assert ddf.abs().max() > 2 and jacobian_determinant(ddf.detach()).min() > 0

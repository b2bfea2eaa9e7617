# SPDX-License-Identifier: Apache-2.0
"""The divergence of a velocity's posterior against loops over voxels, and against that of normal distributions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.losses import VelocityKLLoss


def _field(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _neighbours(place: Sequence[int], size: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for axis, step in itertools.product(range(len(size)), (-1, 1)):
        found = tuple(n + step * (k == axis) for k, n in enumerate(place))
        if 0 <= found[axis] < size[axis]:
            yield found


def by_loops(mean: np.ndarray, log_variance: np.ndarray, prior: float) -> float:
    """As the published code has it: over all voxels and those of their neighbours that the grid has."""
    size, dims = mean.shape[2:], mean.ndim - 2
    spread: list[float] = []
    squares: list[list[float]] = [[] for _ in range(dims)]
    for b, c in np.ndindex(mean.shape[:2]):
        for place in np.ndindex(size):
            own = log_variance[(b, c, *place)]
            around = list(_neighbours(place, size))
            spread.append(prior * len(around) * np.exp(own) - own)
            for other in around:
                axis = next(k for k in range(dims) if other[k] != place[k])
                # Each difference is met from both of its ends.
                squares[axis].append((mean[(b, c, *other)] - mean[(b, c, *place)]) ** 2)
    precision = 0.5 / dims * sum(np.mean(values) for values in squares if values)
    return float(0.5 * dims * (np.mean(spread) + prior * precision))


@pytest.mark.parametrize("shape", [(2, 3, 3, 4, 2), (2, 2, 4, 5), (1, 3, 1, 4, 3)])
def test_value_equals_loops_over_voxels(shape: tuple[int, ...]) -> None:
    mean, log_variance = _field(*shape), _field(*shape, seed=4)
    expected = by_loops(mean.numpy(), log_variance.numpy(), 7.0)
    # Means over up to 200 values in another order: some roundings of float64, 1e-16, and below of float32, 6e-8.
    assert VelocityKLLoss(7.0)(mean, log_variance / 2).item() == pytest.approx(expected, rel=1e-13)
    assert VelocityKLLoss(7.0)(mean.float(), log_variance.float() / 2).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(2, 3, 3, 2, 4), (1, 2, 5, 4)])
def test_gradients_are_exact(shape: tuple[int, ...]) -> None:
    mean, log_sigma = _field(*shape).requires_grad_(), _field(*shape, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(VelocityKLLoss(2.0), (mean, log_sigma))
    assert torch.autograd.gradcheck(lambda x: VelocityKLLoss(2.0)(mean.detach(), x), (log_sigma,))
    assert torch.autograd.gradcheck(lambda x: VelocityKLLoss(2.0)(x, log_sigma.detach()), (mean,))


def test_spread_is_a_divergence_of_normal_distributions_up_to_a_constant() -> None:
    """The prior's precision is the grid's Laplacian: its diagonal counts neighbours."""
    size, prior = (3, 4), 2.5
    places = list(np.ndindex(size))
    laplacian = np.zeros((12, 12))
    for i, place in enumerate(places):
        for other in _neighbours(place, size):
            laplacian[i, i] += 1
            laplacian[i, places.index(other)] -= 1
    sigmas = [torch.full((1, 2, *size), 0.1).double().log(), _field(1, 2, *size)]
    zero = torch.zeros(1, 2, *size, dtype=torch.float64)
    divergences = []
    for log_sigma in sigmas:
        variance = (2 * log_sigma).exp().view(2, 12).numpy()
        # KL without what does not depend on the posterior, per voxel.
        divergences.append(
            sum(0.5 * (prior * np.trace(laplacian @ np.diag(v)) - np.log(v).sum()) for v in variance) / 12
        )
    values = [VelocityKLLoss(prior)(zero, log_sigma).item() for log_sigma in sigmas]
    assert values[0] - values[1] == pytest.approx(divergences[0] - divergences[1])


def test_sharp_posteriors_cost_and_the_best_spread_is_known() -> None:
    log_sigma = torch.full((1, 3, 5, 5, 5), -10.0, requires_grad=True)
    loss = VelocityKLLoss(10.0)
    loss(torch.zeros_like(log_sigma), log_sigma).backward()
    assert log_sigma.grad is not None and (log_sigma.grad < 0).all()
    best = torch.full((1, 3, 3, 3, 3), -0.5 * np.log(60.0)).requires_grad_()
    loss(torch.zeros_like(best), best).backward()
    assert best.grad is not None and best.grad[0, 0, 1, 1, 1].abs() < 1e-7 < best.grad[0, 0, 0, 0, 0].abs()


def test_autocast_keeps_float32() -> None:
    mean, log_sigma = _field(1, 3, 4, 4, 4).float(), _field(1, 3, 4, 4, 4, seed=4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = VelocityKLLoss(3.0)(mean, log_sigma)
    assert value.dtype == torch.float32 and value == VelocityKLLoss(3.0)(mean, log_sigma)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="prior_lambda is -1"):
        VelocityKLLoss(-1)
    with pytest.raises(
        InputError, match=r"velocity of shape \(1, 3, 4, 4, 4\) and log_sigma of shape \(1, 3, 2, 2, 2\)"
    ):
        VelocityKLLoss(1)(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 2, 2, 2))

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from common.spatial import bspline_bound, bspline_field, compose, invert, invert_contraction
from common.spatial.fixed_point import SOLVERS, Solver, anderson, largest_change, solve_inverse

EXACT = Solver(1e-12, 200)
SIZES = [(11, 9), (8, 7, 9)]


def field(size: tuple[int, ...], batch: int = 2, seed: int = 0) -> Tensor:
    """As large as SITReg makes them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = [-(-n // 2) for n in size]
    control = torch.randn(batch, len(size), *coarse, generator=generator, dtype=torch.float64).tanh()
    return bspline_field(0.99 * bspline_bound((2,) * len(size)) * control, size, 2)


@pytest.mark.parametrize("size", SIZES)
def test_inverse_solves_its_equation(size: tuple[int, ...]) -> None:
    ddf = field(size)
    inverse = invert_contraction(ddf, EXACT)
    torch.testing.assert_close(compose(ddf, inverse), torch.zeros_like(ddf), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_inverse_is_that_of_a_plain_iteration(size: tuple[int, ...]) -> None:
    ddf = field(size, 1)[0].numpy()
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"))
    inverse = np.zeros_like(ddf)
    for _ in range(300):
        inverse = -np.stack([map_coordinates(c, grid + inverse, order=1, mode="nearest") for c in ddf])
    found = invert_contraction(torch.from_numpy(ddf)[None], EXACT)[0]
    np.testing.assert_allclose(found.numpy(), inverse, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", SIZES)
def test_presets_keep_their_tolerance(name: str, size: tuple[int, ...]) -> None:
    ddf = field(size).float()
    error = (invert_contraction(ddf, SOLVERS[name]) - invert_contraction(ddf.double(), EXACT)).abs().max()
    assert error < SOLVERS[name].tolerance


@pytest.mark.parametrize("size", [(4, 5), (3, 3, 4)])
def test_gradient_is_exact(size: tuple[int, ...]) -> None:
    ddf = field(size, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: invert_contraction(d, EXACT), ddf, atol=1e-6)


def test_planes_of_the_gradient_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ddf = field((8, 7, 9)).requires_grad_()
    gradients = []
    for points in (1, 150, 10**6):
        monkeypatch.setattr("common.spatial.fixed_point._SLAB_POINTS", points)
        weights = torch.linspace(-1, 1, ddf.numel(), dtype=torch.float64).view_as(ddf)
        gradients.append(torch.autograd.grad((invert_contraction(ddf, EXACT) * weights).sum(), ddf)[0])
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


def test_items_of_a_batch_do_not_depend_on_each_other() -> None:
    easy, hard = 0.01 * field((8, 7, 9), 1), field((8, 7, 9), 1)
    together = invert_contraction(torch.cat([easy, hard]))
    assert torch.equal(together, torch.cat([invert_contraction(easy), invert_contraction(hard)]))


# Of values that are no numbers further steps make none.
@pytest.mark.parametrize(("amount", "steps"), [(3.0, 12), (float("nan"), 2)])
def test_without_convergence_there_is_an_end_and_a_warning(
    amount: float, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    fold = field((8, 7, 9), 1).mul(amount).clone()
    fold[0, 0, ::2] += 4
    with caplog.at_level(logging.WARNING):
        result = invert_contraction(fold, Solver(1e-5, 12))
    assert result.shape == fold.shape
    assert f"did not converge in {steps} steps" in caplog.text and "voxels" in caplog.text
    assert solve_inverse(fold, Solver(1e-5, 12)).evaluations == steps


def test_convergence_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    invert_contraction(field((8, 7, 9)))
    assert not caplog.records


def test_anderson_needs_fewer_evaluations_than_plain_steps() -> None:
    matrix = torch.diag(torch.tensor([0.9, -0.8, 0.5, 0.1], dtype=torch.float64))
    right = torch.ones(1, 4, dtype=torch.float64)
    found = anderson(lambda x: x @ matrix + right, torch.zeros_like(right), largest_change, Solver(1e-2, 100))
    torch.testing.assert_close(found.value, right / (1 - matrix.diagonal()), rtol=0, atol=0.1)
    # A plain step is within 1e-2 of the one before after log(1e-2) / log(0.9) = 44 of them.
    assert found.evaluations < 15


def test_at_least_two_evaluations_are_made() -> None:
    assert solve_inverse(torch.zeros(1, 2, 4, 4), SOLVERS["default"]).evaluations == 2


def test_general_inverse_agrees() -> None:
    ddf = field((8, 7, 9))
    torch.testing.assert_close(invert_contraction(ddf, EXACT), invert(ddf, tolerance=1e-10)[0], rtol=0, atol=1e-8)


@pytest.mark.filterwarnings("ignore:.*jit.* is deprecated", "ignore::torch.jit.TracerWarning")
def test_traced_inverse_is_near() -> None:
    ddf, other = field((8, 7, 9)).float(), field((8, 7, 9), seed=5).float()
    traced = torch.jit.trace(invert_contraction, ddf, check_trace=False)
    torch.testing.assert_close(traced(other), invert_contraction(other, SOLVERS["tight"]), rtol=0, atol=1e-4)

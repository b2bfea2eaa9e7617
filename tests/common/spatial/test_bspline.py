# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from common.checks import InputError
from common.spatial import bspline_bound, bspline_field
from common.spatial.bspline import _evaluate, _evaluate_traceably

CASES = [((5, 4, 3), 1), ((9, 8, 7), 2), ((7, 10), 4), ((11, 8, 9), 3), ((20, 30), 8)]


def control(size: tuple[int, ...], factor: int, batch: int = 2) -> Tensor:
    coarse = [math.ceil(n / factor) for n in size]
    return torch.randn(batch, len(size), *coarse, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "factor"), CASES)
def test_values_are_those_of_the_sum_of_splines(size: tuple[int, ...], factor: int) -> None:
    points = control(size, factor)
    cubic = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    expected = torch.zeros(2, len(size), *size, dtype=torch.float64)
    places = [[(x + 0.5) / factor - 0.5 for x in range(n)] for n in size]
    for voxel in itertools.product(*map(range, size)):
        where = [axis[x] for axis, x in zip(places, voxel, strict=True)]
        for reach in itertools.product(range(-1, 3), repeat=len(size)):
            index = [math.floor(t) + step for t, step in zip(where, reach, strict=True)]
            weight = np.prod([np.nan_to_num(cubic(t - i)) for t, i in zip(where, index, strict=True)])
            clamped = [min(max(i, 0), n - 1) for i, n in zip(index, points.shape[2:], strict=True)]
            at: Any = (..., *voxel)
            source: Any = (..., *clamped)
            expected[at] += factor * float(weight) * points[source]
    torch.testing.assert_close(bspline_field(points, size, factor), expected)


@pytest.mark.parametrize(("size", "factor"), CASES)
def test_traced_form_is_the_same(size: tuple[int, ...], factor: int) -> None:
    field = control(size, factor)
    for axis, n in enumerate(size, start=2):
        torch.testing.assert_close(_evaluate_traceably(field, axis, n, factor), _evaluate(field, axis, n, factor))


@pytest.mark.parametrize(("size", "factor"), [((5, 4, 3), 2), ((7, 6), 4)])
def test_gradient_is_exact(size: tuple[int, ...], factor: int) -> None:
    assert torch.autograd.gradcheck(lambda c: bspline_field(c, size, factor), control(size, factor).requires_grad_())


def test_each_axis_may_have_its_factor() -> None:
    points = control((4, 4), 1)
    field = bspline_field(points, (4, 8), (1, 2))
    assert field.shape == (2, 2, 4, 8)
    constant = bspline_field(torch.ones_like(points), (4, 8), (1, 2))
    torch.testing.assert_close(constant[0, :, 0, 0], torch.tensor([1.0, 2.0]).double())


def test_factor_one_smooths() -> None:
    delta = torch.zeros(1, 2, 5, 5)
    delta[0, 0, 2, 2] = 1
    row = torch.tensor([0, 1, 4, 1, 0]) / 6
    torch.testing.assert_close(bspline_field(delta, (5, 5), 1)[0, 0], torch.outer(row, row))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_bound_is_the_largest_that_keeps_differences_below_one(dims: int, factor: int) -> None:
    """Signs of the worst control points, from the derivative of the field in each cell by autograd."""
    bound = bspline_bound((factor,) * dims)
    size = (5 * factor,) * dims
    points = torch.zeros(1, dims, *(5,) * dims, dtype=torch.float64, requires_grad=True)
    worst = 0.0
    middle = [2 * factor + phase for phase in range(factor)]
    for voxel in itertools.product(middle, repeat=dims):
        for sides in itertools.product((-1, 1), repeat=dims):
            field = bspline_field(points, size, factor)[0, 0]
            slopes = []
            for axis, side in enumerate(sides):
                other = list(voxel)
                other[axis] += side
                slopes.append(side * (field[tuple(other)] - field[voxel]))
            for signs in itertools.product((-1, 1), repeat=dims):
                total = torch.stack([sign * slope for sign, slope in zip(signs, slopes, strict=True)]).sum()
                (gradient,) = torch.autograd.grad(total, points, retain_graph=True)
                worst = max(worst, float(gradient.abs().sum()))
    assert bound * worst == pytest.approx(1, abs=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert bspline_field(torch.randn(1, 2, 4, 4).bfloat16(), (8, 8), 2).dtype == torch.float32


@pytest.mark.parametrize("factor", [0, (1, 2, 3), -1])
def test_impossible_factors_are_refused(factor: int) -> None:
    with pytest.raises(InputError, match="factor of a B-spline"):
        bspline_field(torch.zeros(1, 2, 4, 4), (4, 4), factor)


def test_grid_beyond_the_control_points_is_refused() -> None:
    with pytest.raises(InputError, match="do not cover a grid of"):
        bspline_field(torch.zeros(1, 2, 4, 4), (9, 8), 2)

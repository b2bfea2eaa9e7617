# SPDX-License-Identifier: Apache-2.0
"""Maps of points and their derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.spatial import ComposedMap, field_map
from common.spatial.maps import map_with_derivative


def linear(dims: int) -> Tensor:
    torch.manual_seed(dims)
    return torch.rand(dims, dims, dtype=torch.float64)


@pytest.mark.parametrize("dims", [2, 3])
def test_derivative_of_a_linear_map_is_its_matrix(dims: int) -> None:
    matrix, points = linear(dims), torch.rand(2, 5, dims, dtype=torch.float64)
    values, derivative = map_with_derivative(lambda x: x @ matrix.T + 1, points)
    torch.testing.assert_close(values, points @ matrix.T + 1)
    torch.testing.assert_close(derivative, matrix.expand(2, 5, dims, dims))


def test_derivative_of_a_dense_field_is_found_without_gradients_too() -> None:
    torch.manual_seed(0)
    ddf, points = torch.rand(2, 2, 6, 7, dtype=torch.float64), 4 * torch.rand(2, 9, 2, dtype=torch.float64)
    with torch.no_grad():
        function, step = field_map(ddf), 1e-6
        _, derivative = map_with_derivative(function, points)
        for axis in range(2):
            shift = step * torch.eye(2, dtype=torch.float64)[axis]
            expected = (function(points + shift) - function(points - shift)) / (2 * step)
            torch.testing.assert_close(derivative[..., axis], expected, atol=1e-6, rtol=0)


def test_derivative_can_be_differentiated() -> None:
    points = torch.rand(1, 4, 2, dtype=torch.float64, requires_grad=True)
    _, derivative = map_with_derivative(lambda x: x**3, points)
    (gradient,) = torch.autograd.grad(derivative.sum(), points)
    torch.testing.assert_close(gradient, 6 * points)


def test_two_maps_after_each_other_follow_the_chain_rule() -> None:
    points = torch.rand(2, 5, 2, dtype=torch.float64)
    turn = torch.tensor([[0.0, -2.0], [1.0, 0.0]], dtype=torch.float64)
    values, derivative = map_with_derivative(ComposedMap(lambda x: x**2, lambda x: x @ turn.T), points)
    torch.testing.assert_close(values, (points @ turn.T) ** 2)
    torch.testing.assert_close(derivative, torch.diag_embed(2 * points @ turn.T) @ turn)


def test_a_component_that_does_not_depend_on_the_point_has_derivative_zero() -> None:
    points = torch.rand(1, 4, 2)
    _, derivative = map_with_derivative(lambda x: torch.cat([x[..., :1], torch.ones_like(x[..., :1])], -1), points)
    torch.testing.assert_close(derivative, torch.diag(torch.tensor([1.0, 0.0])).expand(1, 4, 2, 2))


def test_a_map_that_knows_its_derivative_is_asked_for_it() -> None:
    class Known:
        def __call__(self, points: Tensor) -> Tensor:
            raise AssertionError

        def with_derivative(self, points: Tensor) -> tuple[Tensor, Tensor]:
            return points, points[..., None]

    values, derivative = map_with_derivative(Known(), torch.ones(1, 2, 3))
    assert values.shape == (1, 2, 3) and derivative.shape == (1, 2, 3, 1)

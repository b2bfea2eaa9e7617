# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from scipy.ndimage import map_coordinates

from common.spatial.points import linear_at


@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 5), (1, 4, 3)])
def test_values_are_those_of_scipy_with_borders_repeated(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, *shape, dtype=torch.float64)
    points = (torch.rand(200, len(shape), dtype=torch.float64) * 1.6 - 0.3) * torch.tensor(shape)
    value, _ = linear_at(image.flatten(1).T, shape, points)
    for channel in range(2):
        expected = map_coordinates(image[channel].numpy(), points.T.numpy(), order=1, mode="nearest")
        torch.testing.assert_close(value[:, channel], torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(5, 7), (4, 6, 5), (1, 4, 3)])
def test_derivative_is_that_of_the_interpolant(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    rows = torch.rand(torch.Size(shape).numel(), 2, dtype=torch.float64)
    points = (torch.rand(50, len(shape), dtype=torch.float64) * 1.6 - 0.3) * torch.tensor(shape)
    _, derivative = linear_at(rows, shape, points, derivative=True)
    assert derivative is not None
    step = 1e-7
    for axis in range(len(shape)):
        shift = torch.zeros(len(shape), dtype=torch.float64)
        shift[axis] = step
        difference = linear_at(rows, shape, points + shift)[0] - linear_at(rows, shape, points - shift)[0]
        torch.testing.assert_close(derivative[:, :, axis], difference / (2 * step), atol=1e-6, rtol=0)

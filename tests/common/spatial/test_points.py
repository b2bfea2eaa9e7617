# SPDX-License-Identifier: Apache-2.0
"""Values at scattered points against SciPy and the warp, derivatives against finite differences."""

from __future__ import annotations

import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from common.checks import InputError
from common.spatial import identity_grid, sample_at, warp
from common.spatial.points import linear_with_derivative, sample_with_derivative

SHAPES = [(5, 7), (4, 6, 5), (1, 4, 3)]
PADDINGS = ["border", "zeros"]


def inputs(shape: tuple[int, ...], channels: int = 2, count: int = 6) -> tuple[Tensor, Tensor]:
    """An image, and points inside and outside of it that lie 0.2 to 0.8 voxels past a centre: off the kinks."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, channels, *shape, generator=generator, dtype=torch.float64)
    whole = [torch.randint(-2, n + 1, (2, count), generator=generator) for n in shape]
    return image, torch.stack(whole, 2) + 0.2 + 0.6 * torch.rand(2, count, len(shape), generator=generator).double()


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_are_those_of_the_warp(shape: tuple[int, ...], padding_mode: str) -> None:
    torch.manual_seed(0)
    image, ddf = inputs(shape)[0], 3 * torch.randn(2, len(shape), *(3, 4, 5)[: len(shape)], dtype=torch.float64)
    points = (identity_grid(ddf.shape[2:], dtype=torch.float64) + ddf).flatten(2).mT
    expected = warp(image, ddf, padding_mode=padding_mode).flatten(2)
    torch.testing.assert_close(sample_at(image, points, padding_mode), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_can_be_differentiated_twice(shape: tuple[int, ...], padding_mode: str) -> None:
    image, points = (x.requires_grad_() for x in inputs(shape))

    def sample(image: Tensor, points: Tensor) -> Tensor:
        return sample_at(image, points, padding_mode)

    assert torch.autograd.gradcheck(sample, (image, points))
    assert torch.autograd.gradgradcheck(sample, (image, points))


@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_a_penalty_on_the_derivative_trains_image_and_points(padding_mode: str) -> None:
    # f(x, y) = a x y has the gradient (a y, a x), and linear interpolation is exact.
    x, y = identity_grid((4, 4), dtype=torch.float64)[0]
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    point = torch.tensor([[[1.25, 2.5]]], dtype=torch.float64, requires_grad=True)
    value = sample_at((a * x * y)[None, None], point, padding_mode)
    (slope,) = torch.autograd.grad(value.sum(), point, create_graph=True)
    on_a, on_point = torch.autograd.grad(slope.square().sum(), (a, point))
    assert slope.flatten().tolist() == pytest.approx([7.5, 3.75])
    assert float(on_a) == pytest.approx(6 * (1.25**2 + 2.5**2))
    assert on_point.flatten().tolist() == pytest.approx([18 * 1.25, 18 * 2.5])


def test_half_precision_is_sampled_in_float32_under_autocast() -> None:
    image, points = (x.to(torch.bfloat16).requires_grad_() for x in inputs((4, 6, 5)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = sample_at(image, points)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, sample_at(image.float(), points.float()), rtol=0, atol=0)
    gradients = torch.autograd.grad(values.sum(), (image, points))
    assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 2
    assert sample_at(image.float(), points.double()).dtype == torch.float64


def test_no_points_give_no_values() -> None:
    assert sample_at(torch.zeros(2, 3, 4, 5, 6), torch.zeros(2, 0, 3)).shape == (2, 3, 0)


@pytest.mark.parametrize("points", [(1, 4, 3), (2, 4, 2), (2, 3), (2, 4, 3, 1)])
def test_points_that_do_not_belong_to_the_image_are_refused(points: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="cannot be sampled at points of shape"):
        sample_at(torch.zeros(2, 1, 4, 5, 6), torch.zeros(points))
    with pytest.raises(InputError, match="padding_mode is 'reflection'; choose one of"):
        sample_at(torch.zeros(2, 1, 4, 5), torch.zeros(2, 4, 2), "reflection")


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_scipy_with_borders_repeated(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, *shape, dtype=torch.float64)
    points = (torch.rand(200, len(shape), dtype=torch.float64) * 1.6 - 0.3) * torch.tensor(shape)
    value, _ = linear_with_derivative(image.flatten(1).T, shape, points)
    for channel in range(2):
        expected = map_coordinates(image[channel].numpy(), points.T.numpy(), order=1, mode="nearest")
        torch.testing.assert_close(value[:, channel], torch.from_numpy(expected))


@pytest.mark.parametrize("shape", SHAPES)
def test_derivative_is_that_of_the_interpolant(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    rows = torch.rand(torch.Size(shape).numel(), 2, dtype=torch.float64)
    points = (torch.rand(50, len(shape), dtype=torch.float64) * 1.6 - 0.3) * torch.tensor(shape)
    _, derivative = linear_with_derivative(rows, shape, points)
    step = 1e-7
    for axis in range(len(shape)):
        shift = torch.zeros(len(shape), dtype=torch.float64)
        shift[axis] = step
        above, below = (linear_with_derivative(rows, shape, points + s)[0] for s in (shift, -shift))
        torch.testing.assert_close(derivative[:, :, axis], (above - below) / (2 * step), atol=1e-6, rtol=0)


@pytest.mark.parametrize("padding_mode", ["border", "zeros"])
def test_at_a_point_that_is_nan_the_value_is_and_all_others_are_as_ever(padding_mode: str) -> None:
    """Torch's own backward pass in two dimensions ends the process."""
    image, points = torch.rand(1, 2, 16, 17), 15 * torch.rand(1, 5, 2)
    lost = points.clone()
    lost[0, 2, 1] = torch.nan
    results = []
    for places in (points, lost):
        places.requires_grad_()
        found = sample_at(image.requires_grad_(), places, padding_mode)
        found[:, :, [0, 1, 3, 4]].sum().backward()
        results.append(found.detach())
    assert torch.equal(results[1].isnan(), torch.tensor([False, False, True, False, False]).expand(1, 2, 5))
    assert torch.equal(*(result[:, :, [0, 1, 3, 4]] for result in results))
    assert points.grad is not None and lost.grad is not None and torch.equal(points.grad[0, 3], lost.grad[0, 3])


@pytest.mark.parametrize("shape", [*SHAPES, (1, 4)])
def test_values_with_derivative_are_those_of_sample_at(shape: tuple[int, ...]) -> None:
    torch.manual_seed(2)
    image = torch.rand(2, 3, *shape, dtype=torch.float64)
    points = (torch.rand(2, 40, len(shape), dtype=torch.float64) * 1.6 - 0.3) * torch.tensor(shape)
    # On the border, and in a corner outside.
    points[:, 1, 0], points[:, 2] = 0, -3
    points.requires_grad_()
    value, *derivative = sample_with_derivative(image, points)
    expected = sample_at(image, points)
    torch.testing.assert_close(value, expected.mT)
    for channel in range(3):
        (slope,) = torch.autograd.grad(expected[:, channel].sum(), points, retain_graph=True)
        torch.testing.assert_close(torch.stack(derivative, dim=-1)[:, :, channel], slope)


def test_derivative_at_a_node_is_that_of_the_cell_above() -> None:
    image = torch.tensor([0.0, 1.0, 5.0, 6.0]).expand(1, 1, 2, 4)
    jet = sample_with_derivative(image, torch.tensor([[[0.5, 1.0], [0.5, 2.0], [0.5, 3.0]]]))
    assert jet[2, 0, :, 0].tolist() == [4.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_point_that_is_no_number_has_neither_value_nor_derivative_and_no_part_in_others(
    shape: tuple[int, ...],
) -> None:
    image, points = inputs(shape)
    expected = sample_with_derivative(image, points)
    points[1, 2, -1] = torch.nan
    found = sample_with_derivative(image.requires_grad_(), points.requires_grad_())
    # Along an axis on which a point has no place nothing changes.
    assert bool(found[:-1, 1, 2].isnan().all()) and torch.equal(found[:, 0], expected[:, 0])
    assert torch.equal(found[:, 1, 3:], expected[:, 1, 3:])
    found.sum().backward()


def test_values_with_derivative_can_be_differentiated() -> None:
    torch.manual_seed(3)
    image = torch.rand(2, 2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    points = (torch.rand(2, 6, 3, dtype=torch.float64) * 4 - 0.5).requires_grad_()
    assert torch.autograd.gradcheck(sample_with_derivative, (image, points))

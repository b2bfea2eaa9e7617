# SPDX-License-Identifier: Apache-2.0
"""What two maps leave of a point, against affine maps, of which it is known, and the published definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses import GradientInverseConsistencyLoss, InverseConsistencyLoss, RegistrationLoss, Term
from common.losses.noise import normal_noise
from common.networks import EOIR
from common.spatial import field_map, identity_grid
from common.spatial.maps import PointMap

DRAW = torch.tensor([[0, 1, 2], [0, 1, 3]])
SIZES = {2: (6, 9), 3: (5, 6, 7)}


def affine(matrix: Tensor, shift: Tensor) -> PointMap:
    return lambda points: points @ matrix.T + shift


def extent(size: tuple[int, ...]) -> Tensor:
    return torch.tensor([n - 1.0 for n in size])


def image(dims: int, batch: int = 2) -> Tensor:
    return torch.zeros(batch, 1, *SIZES[dims])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("loss", [InverseConsistencyLoss(), GradientInverseConsistencyLoss()])
def test_maps_that_undo_each_other_cost_nothing(loss: nn.Module, dims: int) -> None:
    matrix = torch.eye(dims) + 0.1 * torch.arange(dims * dims).view(dims, dims)
    there, back = affine(matrix, torch.ones(dims)), affine(torch.linalg.inv(matrix), -torch.linalg.inv(matrix).sum(1))
    assert loss(there, back, image(dims), DRAW).item() == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_gradient_is_that_of_an_affine_map_in_units_of_the_extent(dims: int, every: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.eye(dims) + 0.2 * torch.randn(dims, dims, generator=generator) for _ in range(2))
    loss = GradientInverseConsistencyLoss(every)
    found = loss(affine(first, torch.ones(dims)), affine(second, torch.zeros(dims)), image(dims), DRAW)
    scale = extent(SIZES[dims])
    # Back comes first, and then there.
    left = torch.eye(dims) - (first @ second) * scale / scale[:, None]
    assert found.item() == pytest.approx(left.square().sum().item() / dims, rel=1e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_distances_of_both_orders_count(dims: int) -> None:
    shift = torch.arange(1.0, dims + 1)
    away, stays = affine(torch.eye(dims), shift), affine(torch.eye(dims), torch.zeros(dims))
    doubled = affine(2 * torch.eye(dims), torch.zeros(dims))
    expected = 2 * (shift / extent(SIZES[dims])).square().mean().item()
    assert InverseConsistencyLoss()(away, stays, image(dims), DRAW).item() == pytest.approx(expected, rel=1e-4)
    # x -> 2 x + s one way round, 2 (x + s) the other.
    noise = torch.zeros(1, dims, *SIZES[dims])
    points = identity_grid(SIZES[dims]).flatten(2).mT
    sides = [((points + k * shift) / extent(SIZES[dims])).square().mean().item() for k in (1, 2)]
    found = InverseConsistencyLoss().at(away, doubled, image(dims), noise).item()
    assert found == pytest.approx(sum(sides), rel=1e-5)


def test_points_are_every_second_voxel_moved_by_two_voxels_of_the_last_axis() -> None:
    seen: list[Tensor] = []

    def record(points: Tensor) -> Tensor:
        seen.append(points)
        return points

    size, noise = SIZES[3], normal_noise(DRAW, (1, 3, 3, 3, 4))
    GradientInverseConsistencyLoss(2).at(record, record, image(3), noise)
    steps = seen[0].view(2, 4, 3, 3, 4, 3)
    grid = np.stack(np.meshgrid(*[np.arange(0, n, 2) for n in size], indexing="ij"), -1)
    spread = 2 * (np.array(size) - 1) / size[-1]
    expected = grid + spread * noise[0].movedim(0, -1).numpy()
    for b in range(2):
        # Coordinates of float32 up to some dozen voxels, rounded to 4e-6; their differences of means to less.
        np.testing.assert_allclose(steps[b, 0].numpy(), expected, rtol=0, atol=1e-5)
        for axis in range(3):
            moved = (steps[b, 1 + axis] - steps[b, 0]).mean((0, 1, 2)).numpy()
            np.testing.assert_allclose(moved, 1e-3 * (size[axis] - 1) * np.eye(3)[axis], rtol=0, atol=1e-6)


def test_differences_see_the_kinks_of_a_field() -> None:
    """A step of the published size across a kink, which a derivative of the interpolated field does not see."""
    field = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    field[:, 0, 4:] = 1
    noise = torch.zeros(1, 2, 9, 9, dtype=torch.float64)
    found = GradientInverseConsistencyLoss(1).at(
        field_map(field), lambda points: points, torch.zeros(1, 1, 9, 9), noise
    )
    # The row before the step sees the slope of one voxel per voxel, all others none.
    assert found.item() == pytest.approx(9 / (2 * 81), rel=1e-6)


def test_gradients_are_exact() -> None:
    generator = torch.Generator().manual_seed(2)
    fields = [torch.randn((2, 2, 5, 6), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    fixed = torch.zeros(2, 1, 5, 6)
    for loss in (InverseConsistencyLoss(), GradientInverseConsistencyLoss(1)):

        def of_fields(there: Tensor, back: Tensor, loss: nn.Module = loss) -> Tensor:
            result: Tensor = loss(field_map(there), field_map(back), fixed, DRAW)
            return result

        assert torch.autograd.gradcheck(of_fields, fields)


def test_dense_fields_of_any_network_have_a_regulariser() -> None:
    """As a term: the maps are made of the fields, on each level that has both."""
    network = EOIR(2, start_channel=2, int_steps=1)
    pair = torch.rand(2, 2, 32, 32)
    outputs = {"ddf": network(pair), "inverse_ddf": network(pair.flip(1))}
    terms = {"consistency": Term(GradientInverseConsistencyLoss(), ["map", "inverse_map", "fixed", "draw"])}
    loss = RegistrationLoss(terms)
    assert {"ddf*", "inverse_ddf*"} <= set(loss.details)
    total = loss(outputs, {"fixed": pair[:, 1:], "draw": DRAW})
    maps = [field_map(outputs[name]) for name in ("ddf", "inverse_ddf")]
    torch.testing.assert_close(total, GradientInverseConsistencyLoss()(*maps, pair[:, 1:], DRAW))
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_an_axis_of_one_voxel_and_a_wrong_stride() -> None:
    fixed = torch.zeros(1, 1, 5, 6, 1)
    field = field_map(torch.zeros(1, 3, 5, 6, 1))
    assert GradientInverseConsistencyLoss()(field, field, fixed, DRAW).item() == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="every=0; give a whole number from 1 on"):
        GradientInverseConsistencyLoss(0)

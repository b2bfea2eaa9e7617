# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.losses import LandmarkLoss, RegistrationLoss, Term


def case(dims: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    size = (6, 5, 7)[:dims]
    last = torch.tensor(size, dtype=torch.float64) - 1
    points = [last * torch.rand((2, 9, dims), generator=generator, dtype=torch.float64) for _ in range(2)]
    ddf = torch.randn((2, dims, *size), generator=generator, dtype=torch.float64)
    return points[0], points[1], ddf, torch.rand((2, dims), generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("dims", [2, 3])
def test_distances_are_those_of_interpolation_by_hand(dims: int) -> None:
    moving, fixed, ddf, spacing = case(dims)
    distances = []
    for b in range(2):
        for there, here in zip(moving[b], fixed[b], strict=True):
            first, moved = here.floor().long(), here.clone()
            for corner in torch.cartesian_prod(*[torch.arange(2)] * dims):
                voxel = first + corner
                moved += (1 - (here - voxel).abs()).prod() * ddf[(b, slice(None), *voxel.tolist())]
            distances.append(((moved - there) * spacing[b]).square().sum().sqrt())
    expected = torch.stack(distances).mean()
    torch.testing.assert_close(LandmarkLoss()(moving, fixed, ddf, spacing), expected)


def test_gradient_is_exact_and_0_where_points_have_met() -> None:
    moving, fixed, ddf, spacing = case(2)
    assert torch.autograd.gradcheck(lambda u: LandmarkLoss()(moving, fixed, u, spacing), ddf.requires_grad_())
    still = torch.zeros(1, 2, 4, 5, requires_grad=True)
    value = LandmarkLoss()(fixed[:1] % 3, fixed[:1] % 3, still, (1.0, 2.0))
    (gradient,) = torch.autograd.grad(value, still)
    assert value.item() == 0 and not gradient.any()


def test_it_is_a_term_that_draws_points_together() -> None:
    moving, fixed, ddf, _ = (x.float() for x in case(3))
    targets = {"moving_landmarks": moving, "fixed_landmarks": fixed, "spacing": (1.0, 2.0, 3.0)}
    loss = RegistrationLoss({"points": Term(LandmarkLoss(), ["moving_landmarks", "fixed_landmarks", "ddf", "spacing"])})
    ddf.requires_grad_()
    before = loss({"ddf": ddf}, targets)
    (gradient,) = torch.autograd.grad(before, ddf)
    assert loss({"ddf": ddf - 0.1 * gradient}, targets) < before


def test_what_does_not_fit_is_refused() -> None:
    moving, fixed, ddf, spacing = case(3)
    with pytest.raises(InputError, match=r"point n of the one corresponding to point n of the other"):
        LandmarkLoss()(moving[:, 1:], fixed, ddf, spacing)
    with pytest.raises(InputError, match="got no landmarks"):
        LandmarkLoss()(moving[:, :0], fixed[:, :0], ddf, spacing)
    with pytest.raises(InputError, match="give one voxel size per axis"):
        LandmarkLoss()(moving, fixed, ddf, (1.0, 2.0))

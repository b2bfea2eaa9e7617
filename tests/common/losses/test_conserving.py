# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from common.losses import GaussianLNCCLoss, IntensityConservingLoss
from common.spatial import identity_grid, warp


@pytest.mark.parametrize("shape", [(12, 10), (8, 9, 7)])
def test_what_is_pressed_together_becomes_as_much_brighter(shape: tuple[int, ...]) -> None:
    centre = torch.tensor([(n - 1) / 2 for n in shape]).view(1, -1, *[1] * len(shape))
    ddf = 0.2 * (identity_grid(shape) - centre)
    moving = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    warped = warp(moving, ddf)
    loss = IntensityConservingLoss(nn.MSELoss())
    assert loss(warped, 1.2 ** len(shape) * warped, ddf).item() == pytest.approx(0, abs=1e-10)
    assert loss(warped, warped, ddf).item() > 1e-2


def test_determinants_meet_the_voxel_before_and_the_last_ones_do_not_count() -> None:
    ddf = torch.zeros(1, 2, 4, 4)
    ddf[0, 0, 2] = 0.5  # the edges from row 1 to 2 are 1.5 voxels long, those from row 2 to 3 half a voxel
    ones = torch.ones(1, 1, 4, 4)
    pressed = ones.clone()
    pressed[:, :, 1], pressed[:, :, 2] = 1.5, 0.5
    pressed[:, :, 3] = pressed[:, :, :, 3] = 9.0
    assert IntensityConservingLoss(nn.MSELoss())(ones, pressed, ddf).item() == 0


def test_mask_is_cropped_and_gradients_go_through_the_determinant() -> None:
    generator = torch.Generator().manual_seed(0)
    warped, fixed = (torch.rand((1, 1, 5, 6), generator=generator, dtype=torch.float64) for _ in range(2))
    ddf = torch.randn((1, 2, 5, 6), generator=generator, dtype=torch.float64)
    mask = (fixed > 0.3).double()
    loss = IntensityConservingLoss(GaussianLNCCLoss(1))
    inputs = [x.requires_grad_() for x in (warped, fixed, ddf)]
    assert torch.autograd.gradcheck(lambda *images: loss(*images, mask), inputs)
    assert loss(warped, fixed, ddf, mask) > loss(warped, fixed, ddf)

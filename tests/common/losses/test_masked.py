# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.losses import LNCCLoss, MaskedLoss, MultiScaleLoss, RegistrationLoss, Term
from common.spatial import warp


def case(dims: int, batch: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(dims)
    size = (6, 5, 7)[:dims]
    images = {name: torch.rand((batch, 1, *size), generator=generator) for name in ("moving", "fixed")}
    masks = {
        f"{name}_mask": (torch.rand((batch, 1, *size), generator=generator) > 0.3).to(torch.uint8) for name in images
    }
    return {**images, **masks, "ddf": 2 * torch.randn((batch, dims, *size), generator=generator)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_voxels_outside_the_moving_image_or_its_mask_do_not_count(dims: int, masked: bool) -> None:
    data = case(dims)
    warped = warp(data["moving"], data["ddf"])
    shape = warped.shape[2:]
    expected = torch.zeros(())
    for b in range(2):
        for place in torch.cartesian_prod(*[torch.arange(n) for n in shape]).tolist():
            at = (b, slice(None), *place)
            target = [round(x + u) for x, u in zip(place, data["ddf"][at].tolist(), strict=True)]
            if any(not 0 <= x < n for x, n in zip(target, shape, strict=True)):
                continue
            if masked and not (data["fixed_mask"][at].all() and data["moving_mask"][(b, slice(None), *target)].all()):
                continue
            expected = expected + (warped[at] - data["fixed"][at]).square().sum()
    masks = [data["fixed_mask"], data["moving_mask"]] if masked else []
    value = MaskedLoss(nn.MSELoss())(warped, data["fixed"], data["ddf"], *masks)
    torch.testing.assert_close(value, expected / warped.numel())


@pytest.mark.parametrize("dims", [2, 3])
def test_all_voxels_that_the_image_is_interpolated_from_have_to_be_in_the_mask(dims: int) -> None:
    data = case(dims)
    warped, mask = warp(data["moving"], data["ddf"]), data["moving_mask"].float()
    # An image of many values is a mask, too: what is above 0.
    image = torch.where(mask > 0, 0.1 + 100 * data["moving"], 0.0)
    inside = warp(mask, data["ddf"], padding_mode="zeros") >= 1 - 1e-3
    assert 0 < inside.float().mean() < warp(mask, data["ddf"], "nearest", "zeros").mean()
    inside = inside & (data["fixed_mask"] > 0)
    value = MaskedLoss(nn.MSELoss(), "bilinear")(warped, data["fixed"], data["ddf"], data["fixed_mask"], image)
    torch.testing.assert_close(value, nn.MSELoss()(warped * inside, data["fixed"] * inside))


def test_gradient_goes_through_the_images_alone() -> None:
    data = case(3)
    ddf = data["ddf"].requires_grad_()
    warped = warp(data["moving"], data["ddf"]).detach().requires_grad_()
    MaskedLoss(nn.MSELoss())(warped, data["fixed"], ddf).backward()
    assert ddf.grad is None and warped.grad is not None and warped.grad.abs().sum() > 0


def test_nothing_left_of_one_sample_is_refused() -> None:
    data = case(2)
    data["ddf"][1] = 100
    with pytest.raises(InputError, match="Nothing of the fixed image lies where the moving one does"):
        MaskedLoss(nn.MSELoss())(data["fixed"], data["fixed"], data["ddf"])


def test_it_is_a_term_of_the_published_recipe() -> None:
    data = case(3)
    on = ["warped", "fixed", "ddf"]
    loss = RegistrationLoss({"ncc": Term(MaskedLoss(LNCCLoss(3, 3)), on)}, padding_mode="border")
    images = {name: data[name] for name in ("moving", "fixed")}
    expected = MaskedLoss(LNCCLoss(3, 3))(warp(data["moving"], data["ddf"]), data["fixed"], data["ddf"])
    torch.testing.assert_close(loss({"ddf": data["ddf"]}, images), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_scales_are_averages_of_the_voxels_that_there_are(dims: int) -> None:
    a, b = (case(dims)[name] for name in ("moving", "fixed"))
    ones = torch.ones(1, 1, *[3] * dims)
    convolution = F.conv2d if dims == 2 else F.conv3d

    def smaller(x: Tensor) -> Tensor:
        sums, counts = (convolution(y, ones, stride=2, padding=1) for y in (x, torch.ones_like(x)))
        return sums / counts

    expected = (F.mse_loss(a, b) + F.l1_loss(smaller(a), smaller(b))) / 2
    torch.testing.assert_close(MultiScaleLoss([nn.MSELoss(), nn.L1Loss()])(a, b), expected)

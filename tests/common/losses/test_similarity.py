# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from common.checks import InputError
from common.losses import similarity, smoothness_weight
from common.losses.similarity import SIMILARITIES


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("size", [(24, 20), (14, 12, 13)])
def test_an_image_resembles_itself_more_than_its_shifted_form(name: str, size: tuple[int, ...]) -> None:
    places = torch.stack(torch.meshgrid(*[torch.linspace(0, 5, n) for n in size], indexing="ij"))
    image = (places.square().sum(0).sin() * 0.5 + 0.5)[None, None]
    shifted = image.roll(1, 2).requires_grad_()
    loss = similarity(name)
    value = loss(shifted, image)
    assert loss(image, image) < value
    assert value.ndim == 0 and torch.autograd.grad(value, shifted)[0].any()


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("size", [(24, 20), (11, 12, 13)])
def test_weights_of_one_are_none_and_what_has_no_weight_may_be_anything(name: str, size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.rand((2, 2, 1, *size), generator=generator)
    weight = torch.rand((2, 1, *size), generator=generator)
    weight = torch.where(weight > 0.3, weight, 0)
    weight[..., 4:9] = 0  # Wider than most windows.
    loss = similarity(name)
    torch.testing.assert_close(loss(pred, target, torch.ones_like(weight)), loss(pred, target))
    results = []
    for outside in (0.0, -1e5):
        warped = pred.where(weight > 0, outside).requires_grad_()
        value = loss(warped, target.where(weight > 0, outside), weight)
        results.append((value.detach(), *torch.autograd.grad(value, warped)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert results[0][1].any() and not results[0][1][weight == 0].any()


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no similarity 'ssim'; choose one of lncc, lncc_ncc, mse, "):
        similarity("ssim")


def test_each_has_its_smoothness() -> None:
    assert smoothness_weight("lncc", 2) == 2 * smoothness_weight("lncc") > 2 * smoothness_weight("mse") > 0
    with pytest.raises(InputError, match="no similarity 'ssim'"):
        smoothness_weight("ssim")

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


def test_another_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="no similarity 'ssim'; choose one of lncc, mse, "):
        similarity("ssim")


def test_each_has_its_smoothness() -> None:
    assert smoothness_weight("lncc", 2) == 2 * smoothness_weight("lncc") > 2 * smoothness_weight("mse") > 0
    with pytest.raises(InputError, match="no similarity 'ssim'"):
        smoothness_weight("ssim")

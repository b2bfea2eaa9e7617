# SPDX-License-Identifier: Apache-2.0
"""The U-Net of TransMorph and its relatives: grids, what sees what, heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from common.blocks.remade import stored
from common.blocks.swin_unet import FieldHead, Fine, SwinUNet, halved

SMALL: dict[str, Any] = {"embed_dim": 4, "depths": (1, 2), "heads": (1, 2), "window": (2, 3, 2)}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("fine", "finer"), [([], 4), ([Fine(2, 3)], 2), ([Fine(0, 3), Fine(3, 5)], 1)])
def test_features_are_on_the_grid_of_the_last_block(dims: int, fine: list[Fine], finer: int) -> None:
    unet = SwinUNet(dims, **SMALL, fine=fine)
    size = (8, 16, 24)[:dims]
    assert unet.unit == 8
    channels = fine[-1].out if fine else 4
    assert unet(torch.rand(2, 2, *size)).value.shape == (2, channels, *(n // finer for n in size))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_blocks_see_the_encoder_from_coarse_to_fine_and_then_the_images(norm: Any) -> None:
    torch.manual_seed(0)
    unet = SwinUNet(2, **SMALL, fine=[Fine(2, 3), Fine(3, 5)], norm=norm)
    image = torch.rand(2, 2, 8, 16)
    features = unet.encoder(image)
    half, whole = (layer(stored(x)) for layer, x in zip(unet.of_images, (halved(image), image), strict=True))
    x = stored(features[1])
    for block, skip in zip(unet.up, (stored(features[0]), half, whole), strict=True):
        x = block(x, skip)
    torch.testing.assert_close(unet(image).value, x.value)


def test_halved_images_are_means_of_three_among_zeros() -> None:
    image = torch.rand(1, 2, 4, 6)
    padded = F.pad(image, (1, 1, 1, 1))
    expected = torch.stack([padded[:, :, i : i + 3, j : j + 3].mean((2, 3)) for i in (0, 2) for j in (0, 2, 4)], dim=-1)
    torch.testing.assert_close(halved(image), expected.view(1, 2, 2, 3))


def test_a_head_computes_in_float32_and_starts_as_it_is_told() -> None:
    torch.manual_seed(0)
    head = FieldHead(3, 16, deviation=1e-3, bias=-2.0)
    # Of 1296 weights the deviation is off by 2 %, of one standard deviation: five of them.
    assert head.conv.weight.std().item() == pytest.approx(1e-3, rel=0.1)
    assert set(head.state_dict()["conv.bias"].tolist()) == {-2}
    x = torch.randn(1, 16, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = head(stored(x))
    assert found.dtype == torch.float32
    # float32: a few dozen roundings of 1e-7 of values near -2, 3e-6 with AVX2; bfloat16 would be off by 4e-5.
    torch.testing.assert_close(found, F.conv3d(x, head.conv.weight, head.conv.bias, padding=1), rtol=0, atol=5e-6)

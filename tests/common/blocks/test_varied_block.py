# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.dual_pyramid import ResidualBlock
from common.blocks.varied_block import VariedBlock
from common.checks import InputError


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 6), (5, 6, 7)])
def test_without_options_it_is_the_published_block(size: tuple[int, ...], stride: int) -> None:
    published, varied = (kind(len(size), 3, 4, stride).double() for kind in (ResidualBlock, VariedBlock))
    varied.load_state_dict(dict(zip(varied.state_dict(), published.state_dict().values(), strict=True)))
    torch.testing.assert_close(varied(image(2, 3, *size)), published(image(2, 3, *size)))


@pytest.mark.parametrize("activation", ["relu", "prelu"])
def test_one_convolution_without_another_beside_it(activation: str) -> None:
    block = VariedBlock(2, 3, 4, convolutions=1, skip=False, groups=2, activation=activation).double()
    (main,), x = block.main_branch, image(2, 3, 6, 5)
    assert isinstance(main, nn.Sequential)
    convolution, norm = main
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.GroupNorm)
    normed = F.group_norm(F.conv2d(x, convolution.weight, convolution.bias, padding=1), 2, norm.weight, norm.bias)
    torch.testing.assert_close(block(x), F.leaky_relu(normed, 0.0 if activation == "relu" else 0.25))
    assert len([*block.parameters()]) == (4 if activation == "relu" else 5)


@pytest.mark.parametrize("options", [{}, {"separable": True, "convolutions": 3}])
def test_pooling_takes_the_place_of_the_stride(options: dict[str, Any]) -> None:
    pooled, plain = (VariedBlock(3, 3, 4, stride, pooled=True, **options).double() for stride in (2, 1))
    plain.load_state_dict(pooled.state_dict())
    x = image(1, 3, 6, 4, 8)
    torch.testing.assert_close(pooled(x), plain(F.max_pool3d(x, 2)))


def test_each_channel_is_convolved_by_itself_at_the_stride() -> None:
    block, x = VariedBlock(2, 3, 4, 2, separable=True).double(), image(1, 3, 8, 6)
    first: Any = block.main_branch[0]
    each = torch.cat([F.conv2d(x[:, [c]], first[0][0].weight[[c]], stride=2, padding=1) for c in range(3)], 1)
    each = each + first[0][0].bias.view(1, -1, 1, 1)
    expected = F.conv2d(each, first[0][1].weight, first[0][1].bias)
    torch.testing.assert_close(first[0](x), expected)


@pytest.mark.parametrize("options", [{"activation": "gelu"}, {"convolutions": 0}, {"groups": 3}])
def test_blocks_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="A block of 4 channels has .* give one convolution or more"):
        VariedBlock(2, 3, 4, **options)

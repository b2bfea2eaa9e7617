# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.blocks.remade import stored
from common.blocks.skip_decoder import DecoderBlock


def plain(block: DecoderBlock, x: Tensor, *skip: Tensor) -> Tensor:
    convolution, mode = (F.conv2d, "bilinear") if x.ndim == 4 else (F.conv3d, "trilinear")
    x = torch.cat([F.interpolate(x, scale_factor=2, mode=mode, align_corners=False), *skip], dim=1)
    for layer in (block.first, block.second):
        x = F.leaky_relu(F.instance_norm(convolution(x, layer.conv.weight, padding=1)), 0.01)
    return x


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("skip_channels", [0, 3])
def test_it_is_the_block_of_torch(dims: int, skip_channels: int) -> None:
    torch.manual_seed(0)
    block = DecoderBlock(dims, 5, skip_channels, 4).double()
    size = (3, 4, 2)[:dims]
    x = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    skip = [torch.randn(2, skip_channels, *(2 * n for n in size), dtype=torch.float64, requires_grad=True)]
    skip = skip if skip_channels else []
    found, expected = block(stored(x), *map(stored, skip)), plain(block, x, *skip)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.again(), expected)
    inputs = (x, *skip, *block.parameters())
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad(y, inputs, weight) for y in (found.value, expected)]
    torch.testing.assert_close(*gradients)

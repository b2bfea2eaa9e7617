# SPDX-License-Identifier: Apache-2.0
"""The U-Nets of VoxelMorph, which look at a pair of images.

Two networks go by that name. Both halve ``n`` times, and the way up is the same: convolve, enlarge to the nearest, put
what the way down had at that size beside it. They differ in the way down: the one convolves and then takes the largest
of each two voxels along each axis ("pool"), the other convolves with a stride of two ("stride"), so that its first
convolution lies at half resolution and the images themselves stand beside the last enlargement.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.convolution import convolve
from common.blocks.doubled_convolution import convolve_doubled
from common.blocks.memory_format import channels_last

IMAGES = 2
"""Channels of the input."""
SLOPE = 0.2


class PairUNet(nn.Module):
    """A pair of images (B, 2, *spatial) to features.

    Args:
        spatial_dims: 2 or 3.
        encoder: channels of the convolutions on the way down, finest first, so many of each level.
        decoder: channels of those on the way up, coarsest first, so many of each level as on the way down; those that
            are left over, one at least, come after the last enlargement.
        convs_per_level: how many convolutions a level has; 1 with strides.
        strides: whether convolutions halve, else the largest of neighbours is taken.
        levels_left_out: how many enlargements, of the last ones, are left out with what stands beside them.

    Attributes:
        halvings: n, of both ways; each side must be a multiple of ``2 ** n``.
        channels: of the features.
    """

    def __init__(
        self,
        spatial_dims: int,
        encoder: Sequence[int],
        decoder: Sequence[int],
        convs_per_level: int = 1,
        strides: bool = False,
        levels_left_out: int = 0,
    ) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        stride = 2 if strides else 1

        def level(channels: Sequence[int], stride: int = 1) -> nn.ModuleList:
            return nn.ModuleList(kind(*pair, 3, stride=stride, padding=1) for pair in pairwise(channels))

        self.halvings = len(encoder) // convs_per_level
        self.enlargements = self.halvings - levels_left_out
        self.strides = strides
        self.channels = decoder[-1]
        down = _by_level(encoder, convs_per_level, self.halvings)
        up = _by_level(decoder, convs_per_level, self.halvings)
        up.append(list(decoder[self.halvings * convs_per_level :]))
        last = [IMAGES, *(channels[-1] for channels in down)]
        self.encoder = nn.ModuleList(
            level([before, *channels], stride) for before, channels in zip(last[:-1], down, strict=True)
        )
        # Beside the input of each level but the coarsest; the images are the first of those with strides.
        ways = last[:-1] if strides else last[1:]
        beside = [0, *reversed(ways)][: self.enlargements + 1] + [0] * levels_left_out
        below = [last[-1], *(channels[-1] for channels in up[:-1])]
        self.decoder = nn.ModuleList(
            level([before + way, *channels]) for before, way, channels in zip(below, beside, up, strict=True)
        )
        channels_last(self, spatial_dims)

    def forward(self, pair: Tensor) -> Tensor:
        """Look at a pair.

        Args:
            pair: (B, 2, *spatial), sides that are multiples of ``2 ** halvings``.

        Returns:
            (B, channels, *spatial), the sides halved once for each enlargement that is left out.
        """
        x, ways = self._down(pair)
        for level, convolutions in enumerate(self.decoder):
            assert isinstance(convolutions, nn.ModuleList)
            first, *others = convolutions
            if 0 < level <= self.enlargements:
                x = enlarged_and_convolved(x, ways.pop(), first)
            else:
                x = convolved(x, first)
            for convolution in others:
                x = convolved(x, convolution)
        return x

    def _down(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The coarsest features, and those that stand beside the enlargements, finest first."""
        pool = F.max_pool2d if x.ndim == 4 else F.max_pool3d
        ways = []
        for convolutions in self.encoder:
            assert isinstance(convolutions, nn.ModuleList)
            if self.strides:
                ways.append(x)
            for convolution in convolutions:
                x = convolved(x, convolution)
            if not self.strides:
                ways.append(x)
                x = pool(x, 2)
        return x, ways


def convolved(x: Tensor, convolution: nn.Module) -> Tensor:
    """``leaky_relu(convolution(x))``, which takes the place of ``convolution(x)`` in memory."""
    assert isinstance(convolution, (nn.Conv2d, nn.Conv3d)) and convolution.bias is not None
    plain = convolution.stride[0] == 1
    result = convolve(x, convolution.weight, convolution.bias) if plain else convolution(x)
    return F.leaky_relu_(result, SLOPE)


def enlarged_and_convolved(x: Tensor, way: Tensor, convolution: nn.Module) -> Tensor:
    """``leaky_relu(convolution(cat(enlarge(x), way)))``.

    Args:
        x: (B, C, *spatial), enlarged to twice the size by repeating each voxel.
        way: (B, C', *2 spatial).
        convolution: of C + C' channels.
    """
    assert isinstance(convolution, (nn.Conv2d, nn.Conv3d)) and convolution.bias is not None
    return F.leaky_relu_(convolve_doubled(x, way, convolution.weight, convolution.bias), SLOPE)


def _by_level(channels: Sequence[int], convs_per_level: int, levels: int) -> list[list[int]]:
    return [list(channels[level * convs_per_level : (level + 1) * convs_per_level]) for level in range(levels)]


def start_alike(convolution: nn.Conv2d | nn.Conv3d, deviation: float, value: float = 0.0) -> None:
    """Fresh weights of a convolution that says much the same of all voxels.

    Args:
        convolution: with a bias.
        deviation: standard deviation of the weights.
        value: of the bias.
    """
    assert convolution.bias is not None
    nn.init.normal_(convolution.weight, std=deviation)
    nn.init.constant_(convolution.bias, value)


def start_as_he(unet: nn.Module) -> None:
    """Fresh weights by which the variance of the features stays what it is from layer to layer."""
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="relu")
        else:
            nn.init.zeros_(parameter)

# SPDX-License-Identifier: Apache-2.0
"""The U-Net that describes one image on all levels, as VFA and its predecessor Im2grid have it.

Source: Liu et al., "Vector Field Attention for Deformable Image Registration" (J. Med. Imaging 11(6), 2024). Only the
results of convolutions are stored for the backward pass; what is normalised, activated, enlarged or put together of
them is made again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.affine_norm import AffineNorm
from common.blocks.convolution import convolve
from common.blocks.remade import Remade, joined, not_stored
from common.spatial import resize_image

SLOPE = 0.01


class NormedConvolution(nn.Module):
    """Convolution of three voxels, normalisation, leaky ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = kind(in_channels, out_channels, 3, padding=1)
        self.norm = AffineNorm(out_channels, SLOPE)

    def forward(self, x: Remade) -> Remade:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        assert self.conv.bias is not None
        with not_stored(x):
            result = convolve(x.value, self.conv.weight, self.conv.bias)
        normed: Remade = self.norm(result)
        return normed


class UNet(nn.Module):
    """Features of one image on all levels.

    Args:
        spatial_dims: 2 or 3.
        downsamples: levels below full resolution.
        start_channels: of the first convolution; twice as many on the finest level, and so on.
        max_channels: of any level.

    Attributes:
        channels: of each level, finest first.
    """

    def __init__(self, spatial_dims: int, downsamples: int, start_channels: int, max_channels: int) -> None:
        super().__init__()
        widths = [min(max_channels, start_channels * 2**level) for level in range(downsamples + 2)]
        self.channels = widths[1:]

        def double(in_channels: int, out_channels: int) -> nn.Sequential:
            layers = (NormedConvolution(spatial_dims, n, out_channels) for n in (in_channels, out_channels))
            return nn.Sequential(*layers)

        self.first_norm = AffineNorm(1, slope=1.0)
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.first = kind(1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(double(*pair) for pair in zip(widths[:-2], widths[1:-1], strict=True))
        self.bottom = double(*widths[-2:])
        self.enlarge = nn.ModuleList(
            NormedConvolution(spatial_dims, *pair) for pair in zip(widths[2:], widths[1:-1], strict=True)
        )
        self.up = nn.ModuleList(double(2 * here, here) for here in widths[1:-1])

    def forward(self, image: Tensor) -> list[Remade]:
        """(B, 1, *spatial), sides divisible by 2 ** downsamples, to the features of all levels, finest first."""
        x = self._first(image)
        ways: list[Remade] = []
        for block in self.down:
            ways.append(block(x))
            x = _halved(ways[-1])
        features = [self.bottom(x)]
        for enlarge, block in zip(reversed(self.enlarge), reversed(self.up), strict=True):
            way = ways.pop()
            features.insert(0, block(joined(enlarge(_enlarged(features[0], way.value.shape[2:])), way)))
        return features

    def _first(self, image: Tensor) -> Remade:
        assert self.first.bias is not None
        normed = self.first_norm(image)
        with not_stored(normed):
            x = convolve(normed.value, self.first.weight, self.first.bias)
        kept = x.detach()
        return Remade(F.leaky_relu(x, SLOPE), lambda: F.leaky_relu(kept, SLOPE))


def _halved(x: Remade) -> Remade:
    pool = F.avg_pool2d if x.value.ndim == 4 else F.avg_pool3d
    with not_stored(x):
        half = pool(x.value, 2).to(x.value.dtype)
    return Remade(half, lambda: half)


def _enlarged(x: Remade, size: Sequence[int]) -> Remade:
    def enlarge(value: Tensor) -> Tensor:
        return resize_image(value, size).to(value.dtype)

    # What makes a tensor again must not hold on to one that need not be stored.
    again = x.again
    return Remade(enlarge(x.value), lambda: enlarge(again()))

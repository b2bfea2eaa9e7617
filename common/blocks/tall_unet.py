# SPDX-License-Identifier: Apache-2.0
"""The U-Net of ICON and GradICON, which looks at a pair of images and proposes a displacement.

Activations stand before convolutions, also before the first one; around each change of resolution leads a way without
weights, an average on the way down and an interpolation on the way up.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGES = 2
"""Channels of the input."""
SLOPE = 0.01
REDUCTION = 10
"""The output is that of the last convolution divided by this: fresh networks learn by small steps."""
_LINEAR = {2: "bilinear", 3: "trilinear"}


class TallUNet(nn.Module):
    """A pair of images (B, 2, *spatial) to a displacement.

    Args:
        spatial_dims: 2 or 3.
        channels: after each halving, finest first.
        up_channels: after each doubling, finest first; as many.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], up_channels: Sequence[int]) -> None:
        super().__init__()
        flat = spatial_dims == 2
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if flat else nn.Conv3d
        transposed: type[nn.ConvTranspose2d | nn.ConvTranspose3d] = nn.ConvTranspose2d if flat else nn.ConvTranspose3d
        normalisation: type[nn.BatchNorm2d | nn.BatchNorm3d] = nn.BatchNorm2d if flat else nn.BatchNorm3d
        self.down = nn.ModuleList(convolution(*pair, 3, stride=2, padding=1) for pair in pairwise((IMAGES, *channels)))
        below = [*(sum(joined) for joined in zip(channels, up_channels[1:], strict=False)), channels[-1]]
        self.up = nn.ModuleList(
            transposed(*pair, 4, stride=2, padding=1) for pair in zip(below, up_channels, strict=True)
        )
        self.norms = nn.ModuleList(normalisation(n) for n in up_channels)
        self.last = convolution(up_channels[0] + IMAGES, spatial_dims, 3, padding=1)
        # A fresh network leaves images where they are.
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, pair: Tensor) -> Tensor:
        """Propose a displacement.

        Args:
            pair: (B, 2, *spatial), moving and fixed; each halving, which rounds up, needs two voxels along each axis.

        Returns:
            (B, d, *spatial), in units of the extent of each axis, from the first voxel's centre to the last one's.
        """
        ways, x = [], pair
        pool = F.avg_pool2d if pair.ndim == 4 else F.avg_pool3d
        for down in self.down:
            ways.append(x)
            y = down(F.leaky_relu(x, SLOPE))
            x = y + _fitted(pool(x, 2, ceil_mode=True), y.shape[1])
        for up, norm in zip(reversed(self.up), reversed(self.norms), strict=True):
            way = ways.pop()
            y = up(F.leaky_relu(x, SLOPE))
            x = norm(y + _doubled(_fitted(x, y.shape[1])))
            x = torch.cat([_cropped(x, way.shape[2:]), way], dim=1)
        displacement: Tensor = self.last(x) / REDUCTION
        return displacement


def _fitted(x: Tensor, channels: int) -> Tensor:
    """The first channels, or zeros and then all of them."""
    missing = channels - x.shape[1]
    return F.pad(x, [0, 0] * (x.ndim - 2) + [missing, 0]) if missing > 0 else x[:, :channels]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode=_LINEAR[x.ndim - 2], align_corners=False)


def _cropped(x: Tensor, size: Sequence[int]) -> Tensor:
    for axis, n in enumerate(size, start=2):
        x = x.narrow(axis, 0, n)
    return x

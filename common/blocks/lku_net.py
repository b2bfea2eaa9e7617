# SPDX-License-Identifier: Apache-2.0
"""The parts of LKU-Net: activated convolution, large-kernel block in one convolution, way up to the next level.

Source: Jia et al., "U-Net vs Transformer: is U-Net outdated in medical image registration?" (MLMI 2022, arXiv
2208.04939). There is no normalisation, and each activation has one slope.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.convolution import convolve
from common.blocks.eoir import LargeKernelBlock, parameters


class ActivatedConvolution(nn.Module):
    """Convolution of three voxels, PReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: 1, or 2 to halve the size, rounded up.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = kind(in_channels, out_channels, 3, stride=stride, padding=1)
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *(ceil(n / stride) for n in spatial))."""
        if max(self.conv.stride) > 1:
            return _activated(self.conv(x), self.activation)
        return _activated(convolve(x, *parameters(self.conv)), self.activation)


class FoldedKernelBlock(LargeKernelBlock):
    """EOIR's large-kernel block without its normalisations: PReLU of three parallel convolutions and the input.

    All of that is linear but for the activation, so that it is one convolution with the sum of the kernels. It is made
    with this one, in training as well: gradients reach the parts through the sum, which costs next to nothing.

    Args:
        spatial_dims: 2 or 3.
        channels: of input and output.
        kernel_size: of the largest convolution, odd and above 3.
    """

    def __init__(self, spatial_dims: int, channels: int, kernel_size: int) -> None:
        super().__init__(spatial_dims, channels, channels, kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, *spatial) to the same shape."""
        return _activated(convolve(x, *self.folded()), self.activation)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (channels, channels, *kernel) and bias (channels,) of the one convolution."""
        reach = self.large.kernel_size[0] // 2
        weight, bias = parameters(self.large)
        for conv in (self.regular, self.point):
            smaller, beside = parameters(conv)
            margin = reach - conv.kernel_size[0] // 2
            weight, bias = weight + F.pad(smaller, [margin, margin] * (weight.ndim - 2)), bias + beside
        identity = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        identity = identity.view(*identity.shape, *[1] * (weight.ndim - 2))
        return weight + F.pad(identity, [reach, reach] * (weight.ndim - 2)), bias


class WayUp(nn.Module):
    """To the next finer level: a transposed convolution, features of the way down beside it, two convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the coarser level, which the transposed convolution keeps.
        skip_channels: of the features of the way down.
        hidden_channels: between the two convolutions.
        out_channels: of the output.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, skip_channels: int, hidden_channels: int, out_channels: int
    ) -> None:
        super().__init__()
        kind: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
        kind = nn.ConvTranspose2d if spatial_dims == 2 else nn.ConvTranspose3d
        self.enlarge = kind(in_channels, in_channels, 2, stride=2)
        self.activation = nn.PReLU()
        self.first = ActivatedConvolution(spatial_dims, in_channels + skip_channels, hidden_channels)
        self.second = ActivatedConvolution(spatial_dims, hidden_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, *spatial / 2) and (B, skip_channels, *spatial) to (B, out_channels, *spatial)."""
        enlarged = _activated(self.enlarge(x), self.activation)
        result: Tensor = self.second(self.first(torch.cat([enlarged, skip], dim=1)))
        return result


def _activated(x: Tensor, activation: nn.PReLU) -> Tensor:
    # Under autocast on the CPU torch wants both of one type.
    return F.prelu(x, activation.weight.to(x.dtype))

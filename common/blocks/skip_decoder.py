# SPDX-License-Identifier: Apache-2.0
"""The decoder of TransMorph: grids that double, each joined with features of the encoder or of the image.

Source: Chen et al., "TransMorph" (Medical Image Analysis 82, 2022). Only the results of convolutions are stored for the
backward pass; what is normalised, activated, enlarged or put together of them is made again.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.affine_norm import normalise
from common.blocks.convolution import convolve
from common.blocks.remade import Remade, not_stored, stored
from common.spatial.resize import LINEAR

SLOPE = 0.01
Norm = Literal["instance", "batch"]


class ConvNorm(nn.Module):
    """Convolution of three voxels, normalisation and leaky ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input, all parts of it together.
        out_channels: of the output.
        norm: "instance", without any shift or learned scale, or "batch", with running statistics and both.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, norm: Norm = "instance") -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = kind(in_channels, out_channels, 3, padding=1, bias=False)
        batch: type[nn.BatchNorm2d] | type[nn.BatchNorm3d] = nn.BatchNorm2d if spatial_dims == 2 else nn.BatchNorm3d
        self.norm = batch(out_channels) if norm == "batch" else None

    def forward(self, *parts: Remade) -> Remade:
        """Parts (B, channels, *spatial) of the input, one after the other, to (B, out_channels, *spatial).

        Each is convolved by itself, so that they need not be put together, nor their gradients taken apart.
        """
        weights = self.conv.weight.split([part.value.shape[1] for part in parts], 1)
        result: Tensor | None = None
        for part, weight in zip(parts, weights, strict=True):
            with not_stored(part):
                convolved = convolve(part.value, weight)
            result = convolved if result is None else result.add_(convolved)
        assert result is not None
        if self.norm is None:
            return normalise(result, SLOPE)
        return stored(F.leaky_relu(self.norm(result), SLOPE))


class DecoderBlock(nn.Module):
    """Twice as many voxels along each axis, joined with a skip connection, and two convolutions.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        skip_channels: of the skip connection; 0 where there is none.
        out_channels: of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = ConvNorm(spatial_dims, in_channels + skip_channels, out_channels)
        self.second = ConvNorm(spatial_dims, out_channels, out_channels)

    def forward(self, x: Remade, skip: Remade | None = None) -> Remade:
        """Input (B, in_channels, *spatial) and skip (B, skip_channels, *doubled) to (B, out_channels, *doubled)."""
        parts = [enlarged(x), *([] if skip is None else [skip])]
        output: Remade = self.second(self.first(*parts))
        return output


def doubled(x: Tensor) -> Tensor:
    """Linear interpolation of (B, C, *spatial) between voxels that are halved (``align_corners=False``)."""
    return F.interpolate(x, scale_factor=2, mode=LINEAR[x.ndim - 2], align_corners=False)


def enlarged(x: Remade) -> Remade:
    """:func:`doubled`, and made again where it is needed for the backward pass."""
    again = x.again
    return Remade(doubled(x.value), lambda: doubled(again()))

# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph and its loss as a reader of the papers would write them, for the benchmarks to compare with.

Written from Balakrishnan et al., "VoxelMorph" (2019), and Dalca et al., "Unsupervised learning of probabilistic
diffeomorphic registration" (2019), with ordinary torch modules, everything stored by autograd. As in
:mod:`scripts.textbook` this is a re-enactment and not the published code, and imports nothing from ``common``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.textbook import DenseLNCC, StoredGridWarp, squared_gradient

SLOPE = 0.2


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution and leaky ReLU."""
    return nn.Sequential(nn.Conv3d(in_channels, out_channels, 3, padding=1), nn.LeakyReLU(SLOPE))


class TextbookUNet(nn.Module):
    """Convolution and max-pooling on the way down, convolution, enlargement and skip on the way up, then some more.

    Args:
        encoder: channels on the way down, finest first.
        decoder: channels on the way up, coarsest first, one for each of ``encoder``; the rest at full resolution.
    """

    def __init__(self, encoder: Sequence[int], decoder: Sequence[int]) -> None:
        super().__init__()
        depth = len(encoder)
        self.down, self.up, self.last = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 2
        for n in encoder:
            self.down.append(convolution(channels, n))
            channels = n
        for n, skip in zip(decoder, reversed(encoder), strict=False):
            self.up.append(convolution(channels, n))
            channels = n + skip
        for n in decoder[depth:]:
            self.last.append(convolution(channels, n))
            channels = n
        self.pool = nn.MaxPool3d(2)
        self.enlarge = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Features (B, C, D, H, W) of a pair (B, 1, D, H, W) each."""
        x, skips = torch.cat([moving, fixed], dim=1), []
        for block in self.down:
            skips.append(block(x))
            x = self.pool(skips[-1])
        for block in self.up:
            x = torch.cat([self.enlarge(block(x)), skips.pop()], dim=1)
        for block in self.last:
            x = block(x)
        return x


class TextbookVoxelMorph(nn.Module):
    """VoxelMorph-2; with ``steps`` a velocity on half the grid, integrated by scaling and squaring.

    Args:
        size: of the image, multiples of 16.
        steps: squarings; 0 takes the result as displacement.
        encoder: as in :class:`TextbookUNet`.
        decoder: likewise.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        steps: int = 0,
        encoder: Sequence[int] = (16, 32, 32, 32),
        decoder: Sequence[int] = (32, 32, 32, 32, 32, 16, 16),
    ) -> None:
        super().__init__()
        self.unet = TextbookUNet(encoder, decoder)
        self.flow = nn.Conv3d(decoder[-1], 3, 3, padding=1)
        nn.init.normal_(self.flow.weight, std=1e-5)
        assert self.flow.bias is not None
        nn.init.zeros_(self.flow.bias)
        self.steps = steps
        self.squaring = StoredGridWarp(tuple(n // 2 for n in size))

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """What is penalised, on its own grid, and the displacement (B, 3, D, H, W) in voxels."""
        field = self.flow(self.unet(moving, fixed))
        if not self.steps:
            return field, field
        velocity = F.interpolate(field, scale_factor=0.5, mode="trilinear", align_corners=True) / 2
        ddf = velocity / 2**self.steps
        for _ in range(self.steps):
            ddf = ddf + self.squaring(ddf, ddf)
        return velocity, F.interpolate(2 * ddf, scale_factor=2, mode="trilinear", align_corners=True)


class TextbookVoxelMorphLoss(nn.Module):
    """LNCC 9 and the squared gradient of what the network proposes, twice where that is on half the grid."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.similarity, self.warp = DenseLNCC(9), StoredGridWarp(size)

    def forward(self, moving: Tensor, fixed: Tensor, velocity: Tensor, ddf: Tensor) -> Tensor:
        """The total of one pair."""
        weight = 1 if velocity is ddf else 2
        return self.similarity(self.warp(moving, ddf), fixed) + weight * squared_gradient(velocity)

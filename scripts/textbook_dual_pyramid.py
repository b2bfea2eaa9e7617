# SPDX-License-Identifier: Apache-2.0
"""Dual-pyramid networks as a reader of the paper would write them, for the benchmarks to compare with.

As in :mod:`scripts.textbook` these are re-enactments and not the published code, and import nothing from ``common``:
ordinary torch modules, channels first, everything stored by autograd, one term of the correlation after the other. The
inverse-consistent network makes both correlations and runs both ways one after the other, and composes what it has
found after every level, as published.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.textbook import squared_gradient
from scripts.textbook_sitreg import BOUNDS, MULTIPLIER, FixedPointInverse, Spline, chain, sample, voxels
from scripts.textbook_vfa import unfolded_attention

SLOPE = 0.2
CHANNELS = (16, 32, 32, 64, 64)
DECODER_CHANNELS = (32, 64, 64, 128, 128)


def shifted_correlation(reference: Tensor, searched: Tensor) -> Tensor:
    """Correlation (B, 27, D, H, W) of features (B, C, D, H, W), one offset after the other."""
    around, (d, h, w) = F.pad(searched, [1] * 6), reference.shape[2:]
    terms = [
        (reference * around[:, :, i : i + d, j : j + h, k : k + w]).sum(dim=1)
        for i, j, k in itertools.product(range(3), repeat=3)
    ]
    return torch.stack(terms, dim=1) / reference.shape[1] ** 0.5


def unfolded_correlation(reference: Tensor, searched: Tensor) -> Tensor:
    """The same with all neighbours unfolded."""
    around = F.pad(searched, [1] * 6).unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1).flatten(-3)
    return (reference[..., None] * around).sum(dim=1).movedim(-1, 1) / reference.shape[1] ** 0.5


class Residual(nn.Module):
    """Two convolutions with normalisation beside a convolution of one voxel."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
            nn.LeakyReLU(SLOPE),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.InstanceNorm3d(out_channels, affine=True),
        )
        self.skip = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 1, stride=stride), nn.InstanceNorm3d(out_channels, affine=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) to (B, out_channels, ...)."""
        return F.leaky_relu(self.main(x) + self.skip(x), SLOPE)


class Encoder(nn.Module):
    """Features of each level, finest first."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.projection = nn.Conv3d(1, channels[0], 1)
        inputs = (channels[0], *channels[:-1])
        self.blocks = nn.ModuleList(
            Residual(a, b, 2 if level else 1) for level, (a, b) in enumerate(zip(inputs, channels, strict=True))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, D, H, W) to (B, C, D, H, W) of each level."""
        features = [self.blocks[0](self.projection(image))]
        for block in self.blocks[1:]:
            features.append(block(features[-1]))
        return features


class TextbookDualPyramid(nn.Module):
    """DP-Conv-C or, with attention instead of convolutions, DP-VFA.

    Args:
        size: of the image, multiples of 2 ** (levels - 1).
        attention: DP-VFA.
        channels: of the features of each level, finest first.
        decoder_channels: of the decoder of each level; not of attention.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        attention: bool = False,
        channels: tuple[int, ...] = CHANNELS,
        decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        self.attention, self.encoder = attention, Encoder(channels)
        if attention:
            self.decoder = nn.ModuleList(nn.Conv3d(c, c, 3, padding=1) for c in channels)
        else:
            self.decoder = nn.ModuleList(
                nn.Sequential(Residual(27, h), nn.Conv3d(h, 3, 3, padding=1)) for h in decoder_channels
            )
        self.grids = [voxels(tuple(n >> level for n in size)) for level in range(len(channels))]

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (B, 3, *size) in voxels."""
        moving_features, fixed_features = self.encoder(moving), self.encoder(fixed)
        known: Tensor | None = None
        for level in reversed(range(len(self.grids))):
            m, f, grid = moving_features[level], fixed_features[level], self.grids[level]
            if known is not None:
                known = F.interpolate(2 * known, scale_factor=2, mode="trilinear", align_corners=True)
                m = sample(m, grid + known)
            found = self.find(level, m, f)
            known = found if known is None else chain(grid, known, found)
        assert known is not None
        return known

    def find(self, level: int, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement between features that are warped by what is known."""
        project = self.decoder[level]
        if self.attention:
            return unfolded_attention(project(fixed), project(F.pad(moving, [1] * 6, mode="replicate")))
        found: Tensor = project(shifted_correlation(fixed, moving))
        return found


class TextbookInverseConsistent(nn.Module):
    """DP-ConvIC-C.

    Args:
        size: of the image, multiples of 2 ** (levels - 1).
        channels: of the features of each level, finest first.
        decoder_channels: of the decoder of each level.
    """

    def __init__(
        self,
        size: tuple[int, ...],
        channels: tuple[int, ...] = CHANNELS,
        decoder_channels: tuple[int, ...] = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        self.size, self.encoder = size, Encoder(channels)
        self.decoder = nn.ModuleList(
            nn.Sequential(Residual(54, h), nn.Conv3d(h, 3, 3, padding=1)) for h in decoder_channels
        )
        self.splines = nn.ModuleList(Spline(2**level) for level in range(len(channels)))
        self.grids = [voxels(tuple(n >> level for n in size), 2**level) for level in range(len(channels))]

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """Displacement (B, 3, *size) and the way back."""
        features, grid = self.encoder(torch.cat([moving, fixed])), self.grids[0]
        left = right = left_inverse = right_inverse = moving.new_zeros((len(moving), 3, *self.size))
        for level in reversed(range(len(self.grids))):
            m, f = self._sampled(features[level], left, right, level)
            there, back = shifted_correlation(m, f), shifted_correlation(f, m)
            a, b = (self._update(torch.cat(x, dim=1), level) for x in ([there, back], [back, there]))
            a_inverse, b_inverse = (FixedPointInverse.apply(update, grid) for update in (a, b))
            left, right, left_inverse, right_inverse = (
                chain(grid, left, a, b_inverse),
                chain(grid, right, b, a_inverse),
                chain(grid, b, a_inverse, left_inverse),
                chain(grid, a, b_inverse, right_inverse),
            )
            results = chain(grid, left, right_inverse), chain(grid, right, left_inverse)
        return results

    def _sampled(self, features: Tensor, left: Tensor, right: Tensor, level: int) -> list[Tensor]:
        grid, factor = self.grids[level], 2**level
        halves = zip(features.chunk(2), (left, right), strict=True)
        return [sample(z, (grid + sample(half, grid) + 0.5) / factor - 0.5) for z, half in halves]

    def _update(self, x: Tensor, level: int) -> Tensor:
        control = MULTIPLIER * BOUNDS[2**level] * torch.tanh(self.decoder[level](x))
        field: Tensor = self.splines[level](control, self.size)
        return field


class TextbookDualPyramidLoss(nn.Module):
    """One minus LNCC with dense windows of means, plus the squared gradient; the mean of the directions that there are.

    Args:
        size: of the image.
        window: side of the windows.
    """

    kernel: Tensor

    def __init__(self, size: tuple[int, ...], window: int = 9) -> None:
        super().__init__()
        self.grid = voxels(size)
        self.register_buffer("kernel", torch.full((1, 1, window, window, window), 1 / window**3))

    def forward(self, moving: Tensor, fixed: Tensor, *fields: Tensor) -> Tensor:
        """The total of one pair and its displacement, and if it is given the way back."""
        total = fixed.new_zeros(())
        for image, target, field in zip((moving, fixed), (fixed, moving), fields, strict=False):
            total = total + self.dissimilarity(sample(image, self.grid + field), target) + squared_gradient(field)
        return total / len(fields)

    def dissimilarity(self, a: Tensor, b: Tensor) -> Tensor:
        """Of images (B, 1, D, H, W)."""
        padding = self.kernel.shape[-1] // 2
        mean_a, mean_b, aa, bb, ab = (F.conv3d(x, self.kernel, padding=padding) for x in (a, b, a * a, b * b, a * b))
        cross, variances = ab - mean_a * mean_b, (aa - mean_a**2) * (bb - mean_b**2)
        return 1 - (cross * cross / variances.clamp(min=torch.finfo(a.dtype).eps)).mean()

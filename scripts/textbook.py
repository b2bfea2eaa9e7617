# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks compare with: plain textbook forms, written from the descriptions of the published methods.

These are re-enactments and not the published code: ordinary torch modules, one after the other, as a paper's reader
would write them. They import nothing from ``common`` so that they stay a reference for it.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 5


class StoredGridWarp(nn.Module):
    """``grid_sample`` of an identity grid, kept as a buffer, plus a displacement in voxels; zeros outside."""

    grid: Tensor

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        axes = [torch.arange(n, dtype=torch.float32) for n in size]
        self.register_buffer("grid", torch.stack(torch.meshgrid(*axes, indexing="ij"))[None])

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        """Sample ``image`` (B, C, D, H, W) at ``x + ddf(x)``, ddf (B, 3, D, H, W)."""
        where = self.grid + ddf
        axes = [2 * (where[:, k] / (n - 1) - 0.5) for k, n in enumerate(ddf.shape[2:])]
        grid = torch.stack(axes[::-1], dim=-1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class TextbookEOIR(nn.Module):
    """Plain EOIR in torch modules: channels first, joint batch of both images, everything stored by autograd.

    Args:
        size: of the image, multiples of 16.
        channels: of the features.
        steps: of scaling and squaring.
    """

    def __init__(self, size: tuple[int, ...], channels: int = 32, steps: int = 7) -> None:
        super().__init__()
        widths = ((1, channels), (channels, 2 * channels), (2 * channels, channels))
        layers = [(nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b), nn.PReLU()) for a, b in widths]
        self.encoder = nn.Sequential(*itertools.chain.from_iterable(layers))
        wide, hidden = 2 * channels, 27
        self.estimators = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(wide, wide, 3, padding=1),
                nn.ReLU(),
                nn.Conv3d(wide, hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv3d(hidden, 3, 3, padding=1),
            )
            for _ in range(LEVELS)
        )
        self.warps = nn.ModuleList(StoredGridWarp(tuple(n >> level for n in size)) for level in range(LEVELS))
        self.steps = steps

    def forward(self, moving: Tensor, fixed: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Velocities and displacements of all levels, finest first."""
        features = [self.encoder(torch.cat([moving, fixed]))]
        for _ in range(LEVELS - 1):
            features.append(F.interpolate(features[-1], scale_factor=0.5, mode="trilinear", align_corners=True))
        velocities: list[Tensor] = []
        displacements: list[Tensor] = []
        known: Tensor | None = None
        for level in reversed(range(LEVELS)):
            m, f = features[level].chunk(2)
            if known is not None:
                m = self.warps[level](m.to(known.dtype), known)
            velocity = self.estimators[level](torch.cat([f + m, f - m], dim=1)).float()
            ddf = velocity / 2**self.steps
            for _ in range(self.steps):
                ddf = ddf + self.warps[level](ddf, ddf)
            if known is not None:
                ddf = ddf + self.warps[level](known, ddf)
            known = 2 * F.interpolate(ddf, scale_factor=2, mode="trilinear", align_corners=True)
            velocities.insert(0, velocity)
            displacements.insert(0, ddf)
        return velocities, displacements


class DenseLNCC(nn.Module):
    """One minus the local squared correlation, five dense box convolutions, the gradient left to autograd."""

    ones: Tensor

    def __init__(self, window: int = 9) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("ones", torch.ones(1, 1, window, window, window))

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare images (B, 1, D, H, W)."""
        size = self.window**3
        products = (pred, target, pred * pred, target * target, pred * target)
        s_i, s_j, s_ii, s_jj, s_ij = (F.conv3d(x, self.ones, padding=self.window // 2) for x in products)
        mean_i, mean_j = s_i / size, s_j / size
        cross = s_ij - mean_j * s_i - mean_i * s_j + mean_i * mean_j * size
        var_i = s_ii - 2 * mean_i * s_i + mean_i * mean_i * size
        var_j = s_jj - 2 * mean_j * s_j + mean_j * mean_j * size
        return 1 - (cross * cross / (var_i * var_j + 1e-5)).mean()


def squared_gradient(field: Tensor) -> Tensor:
    """Mean squared forward differences, averaged over the axes."""
    return torch.stack([field.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean()


def blurred_pyramid(image: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """Blur with a dense 5 x 5 x 5 kernel and halve, repeatedly; finest first."""
    steps = torch.arange(5.0) - 2
    taps = [torch.exp(-(steps**2) / (2 * sigma**2)) for sigma in (1.0, float("inf"), 0.5**0.5)]
    kernel = torch.einsum("i,j,k->ijk", *(t / t.sum() for t in taps))[None, None]
    kernel = kernel.repeat(image.shape[1], 1, 1, 1, 1)
    pyramid = [image]
    for _ in range(levels - 1):
        blurred = F.conv3d(pyramid[-1], kernel, padding=2, groups=image.shape[1])
        pyramid.append(F.interpolate(blurred, scale_factor=0.5, mode="trilinear", align_corners=True))
    return pyramid


class TextbookLoss(nn.Module):
    """LUMIR's training loss: LNCC 9 and five times the squared gradient of the velocity, level i weighted 2 ** -i."""

    def __init__(self, size: tuple[int, ...]) -> None:
        super().__init__()
        self.similarity = DenseLNCC(9)
        self.warps = nn.ModuleList(StoredGridWarp(tuple(n >> level for n in size)) for level in range(LEVELS))

    def forward(self, moving: Tensor, fixed: Tensor, velocities: list[Tensor], displacements: list[Tensor]) -> Tensor:
        """The total of one pair."""
        total = fixed.new_zeros(())
        for level, (m, f) in enumerate(zip(blurred_pyramid(moving), blurred_pyramid(fixed), strict=True)):
            warped = self.warps[level](m, displacements[level])
            value = self.similarity(warped, f) + 5 * squared_gradient(velocities[level])
            total = total + 0.5**level * value
        return total


def one_hot_dice(moving: Tensor, fixed: Tensor, ddf: Tensor, classes: int, sampler: StoredGridWarp) -> Tensor:
    """Dice loss of linearly warped one-hot labels, (B, 1, D, H, W) integer maps."""
    p, t = (F.one_hot(label[:, 0].long(), classes).movedim(-1, 1).float() for label in (moving, fixed))
    p = sampler(p, ddf)
    overlap, size = (p * t).flatten(2).sum(-1), p.flatten(2).sum(-1) + t.flatten(2).sum(-1)
    return 1 - (2 * overlap / (size + 1e-5)).mean()


def edge_directions(pred: Tensor, target: Tensor) -> Tensor:
    """Normalised gradient fields of one pair (1, 1, D, H, W), the mean gradient as edge parameter."""
    squares, slopes = [], [torch.stack(torch.gradient(image[0, 0])) for image in (pred, target)]
    for slope in slopes:
        square = slope.square().sum(0)
        seen = square[square > 0]
        squares.append(square + seen.sqrt().mean() ** 2)
    return 1 - ((slopes[0] * slopes[1]).sum(0).square() / (squares[0] * squares[1])).mean()

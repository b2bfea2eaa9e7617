# SPDX-License-Identifier: Apache-2.0
"""VFA as a reader of the paper would write it: what the benchmark compares with.

Written from Liu et al., "Vector Field Attention for Deformable Image Registration" (2024), with ordinary torch modules,
channels first, everything stored by autograd. It imports nothing from ``common`` so that it stays a reference for it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.01


def double(in_channels: int, out_channels: int) -> nn.Sequential:
    """Twice convolution, instance normalisation, leaky ReLU."""
    layers: list[nn.Module] = []
    for n in (in_channels, out_channels):
        layers += [nn.Conv3d(n, out_channels, 3, padding=1), nn.InstanceNorm3d(out_channels, affine=True)]
        layers.append(nn.LeakyReLU(SLOPE))
    return nn.Sequential(*layers)


def sample(image: Tensor, grid: Tensor) -> Tensor:
    """``image`` (B, C, D, H, W) at voxel coordinates (B, 3, D, H, W), the border held outside."""
    axes = [2 * grid[:, k] / (n - 1) - 1 for k, n in enumerate(grid.shape[2:])]
    where = torch.stack(axes[::-1], dim=-1)
    return F.grid_sample(image, where, mode="bilinear", padding_mode="border", align_corners=True)


def unfolded_attention(query: Tensor, key: Tensor) -> Tensor:
    """Mean offset (B, 3, D, H, W) of query (B, C, D, H, W) among the neighbours in key, one voxel larger all round."""
    keys = key.unfold(2, 3, 1).unfold(3, 3, 1).unfold(4, 3, 1).flatten(-3).permute(0, 2, 3, 4, 5, 1)
    logits = (keys @ query.movedim(1, -1)[..., None])[..., 0] / query.shape[1] ** 0.5
    axis = torch.arange(-1.0, 2.0)
    offsets = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), dim=-1).flatten(0, -2)
    return (logits.softmax(-1) @ offsets).movedim(-1, 1)


class TextbookVFA(nn.Module):
    """VFA of the published size in torch modules.

    Args:
        size: of the image, multiples of 16.
        start: channels of the first convolution and of the finest comparison.
    """

    identities: list[Tensor]

    def __init__(self, size: tuple[int, ...], start: int = 8) -> None:
        super().__init__()
        widths = [min(64, start * 2**i) for i in range(6)]
        self.first = nn.Sequential(
            nn.InstanceNorm3d(1, affine=True), nn.Conv3d(1, start, 3, padding=1), nn.LeakyReLU(SLOPE)
        )
        self.down = nn.ModuleList(double(*widths[i : i + 2]) for i in range(5))
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
                nn.Conv3d(below, here, 3, padding=1),
                nn.InstanceNorm3d(here, affine=True),
                nn.LeakyReLU(SLOPE),
            )
            for here, below in zip(widths[1:5], widths[2:], strict=True)
        )
        self.up = nn.ModuleList(double(2 * here, here) for here in widths[1:5])
        self.project = nn.ModuleList(
            nn.Conv3d(features, min(64, start * 2**i), 3, padding=1) for i, features in enumerate(widths[1:])
        )
        self.beta = nn.Parameter(torch.full((1,), 0.1))
        axes = [[torch.arange(float(n >> level)) for n in size] for level in range(5)]
        self.identities = [torch.stack(torch.meshgrid(*a, indexing="ij"))[None] for a in axes]

    def features(self, image: Tensor) -> list[Tensor]:
        """Of one image (B, 1, D, H, W), finest level first."""
        x, ways = self.first(image), []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool3d(x, 2) if level else x)
            ways.append(x)
        features = [ways.pop()]
        for enlarge, block in zip(reversed(self.enlarge), reversed(self.up), strict=True):
            features.insert(0, block(torch.cat([enlarge(features[0]), ways.pop()], dim=1)))
        return features

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Voxel coordinates (B, 3, D, H, W) of the moving image for each voxel of the fixed one."""
        fixed_features, moving_features = self.features(fixed), self.features(moving)
        grid: Tensor | None = None
        for level in reversed(range(5)):
            m, f = moving_features[level], fixed_features[level]
            if grid is not None:
                scale = torch.tensor([(2 * n - 1) / (n - 1) for n in grid.shape[2:]]).view(1, 3, 1, 1, 1)
                grid = F.interpolate(grid * scale, scale_factor=2, mode="trilinear", align_corners=True)
                m = sample(m, grid)
            query = self.project[level](f)
            key = self.project[level](F.pad(m, [1] * 6, mode="replicate"))
            local = self.identities[level] + self.beta * unfolded_attention(query, key)
            grid = local if grid is None else sample(grid, local)
        assert grid is not None
        return grid


class TextbookVFALoss(nn.Module):
    """Negative LNCC 9 where both images exist, five dense box convolutions, and the squared gradient of the field."""

    ones: Tensor

    def __init__(self, window: int = 9) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("ones", torch.full((1, 1, window, window, window), 1 / window**3))

    def forward(self, moving: Tensor, fixed: Tensor, grid: Tensor, identity: Tensor) -> Tensor:
        """The total of one pair (B, 1, D, H, W)."""
        sizes = torch.tensor(fixed.shape[2:]).view(1, 3, 1, 1, 1)
        mask = ((grid >= -0.5) & (grid <= sizes - 0.5)).all(1, keepdim=True).float()
        a, b = sample(moving, grid) * mask, fixed * mask
        means = [F.conv3d(x, self.ones, padding=self.window // 2) for x in (a, b, a * a, b * b, a * b)]
        cross = means[4] - means[0] * means[1]
        variances = (means[2] - means[0] ** 2) * (means[3] - means[1] ** 2)
        ncc = (cross * cross / variances.clamp(min=torch.finfo(a.dtype).eps)).mean()
        ddf = grid - identity
        return torch.stack([ddf.diff(dim=axis).square().mean() for axis in (2, 3, 4)]).mean() - ncc

# SPDX-License-Identifier: Apache-2.0
"""TransMorph as a reader of the paper would write it: what the benchmark compares with.

Written from Chen et al., "TransMorph" (Medical Image Analysis 82, 2022) and Liu et al., "Swin Transformer" (ICCV 2021),
with ordinary torch modules, channels first, everything stored by autograd. It imports nothing from ``common`` so that
it stays a reference for it.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Window = tuple[int, int, int]


def windows_of(x: Tensor, window: Window) -> Tensor:
    """(B, D, H, W, C) as (B * windows, tokens of a window, C)."""
    b, d, h, w, c = x.shape
    x = x.view(b, d // window[0], window[0], h // window[1], window[1], w // window[2], window[2], c)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, window[0] * window[1] * window[2], c)


def grid_of(tokens: Tensor, window: Window, size: tuple[int, ...]) -> Tensor:
    """The way back, to (B, *size, C)."""
    parts = [n // w for n, w in zip(size, window, strict=True)]
    x = tokens.view(-1, *parts, *window, tokens.shape[-1]).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(-1, *size, tokens.shape[-1])


class WindowAttention(nn.Module):
    """Attention among the tokens of a window, biased by how they lie to each other."""

    index: Tensor

    def __init__(self, dim: int, heads: int, window: Window) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        widths = [2 * n - 1 for n in window]
        self.table = nn.Parameter(torch.zeros(widths[0] * widths[1] * widths[2], heads))
        nn.init.trunc_normal_(self.table, std=0.02)
        places = torch.cartesian_prod(*(torch.arange(n) for n in window))
        apart = places[:, None] - places[None] + torch.tensor(window) - 1
        self.register_buffer("index", (apart[..., 0] * widths[1] + apart[..., 1]) * widths[2] + apart[..., 2])
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B * windows, N, C), mask (windows, N, N), to the same."""
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q * self.scale) @ k.transpose(-2, -1) + self.table[self.index].permute(2, 0, 1)
        if mask is not None:
            scores = (scores.view(-1, len(mask), self.heads, n, n) + mask[:, None]).view(-1, self.heads, n, n)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class DropPath(nn.Module):
    """A sample skips the branch with a probability."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1)) >= self.rate
        return x * kept / (1 - self.rate)


class SwinBlock(nn.Module):
    """Attention and MLP, each beside the identity."""

    def __init__(self, dim: int, heads: int, window: Window, shifted: bool, rate: float) -> None:
        super().__init__()
        self.window, self.shift = window, [n // 2 if shifted else 0 for n in window]
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads, window)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = DropPath(rate)

    def mask(self, size: tuple[int, ...]) -> Tensor:
        """-100 between tokens that the shift has brought together."""
        regions = torch.zeros(1, *size, 1)
        cuts = [(slice(0, -w), slice(-w, -s), slice(-s, None)) for w, s in zip(self.window, self.shift, strict=True)]
        for number, (i, j, k) in enumerate(itertools.product(*cuts)):
            regions[0, i, j, k] = number
        of_window = windows_of(regions, self.window)[..., 0]
        return torch.where(of_window[:, None] == of_window[:, :, None], 0.0, -100.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to the same."""
        d, h, w = x.shape[1:4]
        pads = [-n % side for n, side in zip((d, h, w), self.window, strict=True)]
        y = F.pad(self.norm1(x), [0, 0, 0, pads[2], 0, pads[1], 0, pads[0]])
        size, mask = tuple(y.shape[1:4]), None
        if any(self.shift):
            y, mask = torch.roll(y, [-s for s in self.shift], (1, 2, 3)), self.mask(size)
        y = grid_of(self.attention(windows_of(y, self.window), mask), self.window, size)
        if any(self.shift):
            y = torch.roll(y, self.shift, (1, 2, 3))
        x = x + self.drop(y[:, :d, :h, :w])
        return x + self.drop(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """Eight tokens become one of twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(8 * dim), nn.Linear(8 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W, C) to (B, D / 2, H / 2, W / 2, 2 C)."""
        parts = [x[:, i::2, j::2, k::2] for i, j, k in itertools.product(range(2), repeat=3)]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
        return merged


def convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """Convolution, instance normalisation, leaky ReLU."""
    layers = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False), nn.InstanceNorm3d(out_channels)
    return nn.Sequential(*layers, nn.LeakyReLU(0.01))


class DecoderBlock(nn.Module):
    """Twice the voxels, joined with a skip connection."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.first = convolution(in_channels + skip_channels, out_channels)
        self.second = convolution(out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, in_channels, D, H, W) to (B, out_channels, 2 D, 2 H, 2 W)."""
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        joined: Tensor = self.second(self.first(torch.cat([x, skip], dim=1)))
        return joined


class TextbookTransMorph(nn.Module):
    """TransMorph for IXI in torch modules.

    Args:
        embed_dim: channels of the finest tokens.
        depths: blocks of each stage.
        heads: of each stage.
        window: tokens along each axis.
        drop_path: probability that a sample skips a branch of the last block.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 4, 2),
        heads: tuple[int, ...] = (4, 4, 8, 8),
        window: Window = (5, 6, 7),
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv3d(2, embed_dim, 4, stride=4), nn.LayerNorm(embed_dim)
        rates = iter(torch.linspace(0, drop_path, sum(depths)).tolist())
        dims = [embed_dim * 2**i for i in range(len(depths))]
        self.stages = nn.ModuleList(
            nn.Sequential(*(SwinBlock(c, n, window, bool(j % 2), next(rates)) for j in range(depth)))
            for c, depth, n in zip(dims, depths, heads, strict=True)
        )
        self.merging = nn.ModuleList(PatchMerging(c) for c in dims[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in dims)
        self.pool, self.of_half, self.of_full = (
            nn.AvgPool3d(3, 2, 1),
            convolution(2, embed_dim // 2),
            convolution(2, 16),
        )
        ups = [DecoderBlock(2 * c, c, c) for c in reversed(dims[:-1])]
        half = embed_dim // 2
        self.ups = nn.ModuleList([*ups, DecoderBlock(embed_dim, half, half), DecoderBlock(half, 16, 16)])
        self.head = nn.Conv3d(16, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-5)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (B, 3, D, H, W) in voxels of a pair (B, 1, D, H, W), sides that are multiples of 32."""
        image = torch.cat([moving, fixed], dim=1)
        skips = [self.of_full(image), self.of_half(self.pool(image))]
        x = self.norm(self.patches(image).movedim(1, -1))
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            x = stage(self.merging[i - 1](x) if i else x)
            skips.append(norm(x).movedim(-1, 1))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        field: Tensor = self.head(x)
        return field

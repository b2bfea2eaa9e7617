# SPDX-License-Identifier: Apache-2.0
"""The Swin encoder of TransMorph: attention inside of windows that shift, on grids that halve.

Papers: Liu et al., "Swin Transformer" (ICCV 2021), arXiv 2103.14030; Chen et al., "TransMorph" (Medical Image Analysis
82, 2022). Attention, MLP, windows and merging are MONAI's (``monai.networks.nets.swin_unetr``). How windows lie on the
grid is not: MONAI makes a window that exceeds the grid smaller, and does not shift along an axis that it covers. Here,
as published, the grid is padded to whole windows and shifted along all axes, or along none where the window has an axis
of one token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import PatchEmbed
from monai.networks.nets.swin_unetr import (
    PatchMergingV2,
    SwinTransformerBlock,
    WindowAttention,
    window_partition,
    window_reverse,
)
from torch import Tensor, nn

from common.tracing import is_traced

PATCH = 4
"""Voxels of a token along each axis."""
_APART = -100.0
"""What is added to the attention between tokens of different regions, which a shifted window brings together."""


class SwinBlock(SwinTransformerBlock):
    """Attention inside of windows and an MLP, each beside the identity.

    Args:
        dim: channels.
        heads: of the attention.
        window: tokens along each axis.
        shifted: whether the windows are shifted by half.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability that a sample skips a branch in training.
        dropout: probability that a value of the MLP or the projection, or a weight of the attention, is dropped.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: Sequence[int],
        shifted: bool,
        qkv_bias: bool,
        drop_path: float,
        dropout: float = 0.0,
    ) -> None:
        halves = tuple(n // 2 for n in window)
        shift = halves if shifted and min(halves) > 0 else tuple(0 for _ in window)
        super().__init__(
            dim,
            heads,
            tuple(window),
            shift,
            qkv_bias=qkv_bias,
            drop=dropout,
            attn_drop=dropout,
            drop_path=drop_path,
            # It counts only where nobody asks for gradients, and drops nothing.
            use_flash_attention=dropout == 0,
        )
        assert isinstance(self.attn, WindowAttention)
        # It follows from the window: no part of the state dict.
        index = self.attn.relative_position_index
        assert isinstance(index, Tensor)
        self.attn.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """(B, *grid, C) to the same, ``mask_matrix`` as in :meth:`forward_part1`.

        In training both branches are computed again in the backward pass: what attention and MLP store would take up
        more memory than all of the decoder, and they take little of its time.
        """
        self.use_checkpoint = torch.is_grad_enabled() and not is_traced()
        result: Tensor = super().forward(x, mask_matrix)
        return result

    def forward_part1(self, x: Tensor, mask_matrix: Tensor) -> Tensor:
        """The branch of attention.

        Args:
            x: (B, *grid, C).
            mask_matrix: (windows, N, N) for N tokens of a window, what :func:`shift_mask` makes.

        Returns:
            (B, *grid, C).
        """
        grid, axes = x.shape[1:-1], tuple(range(1, x.ndim - 1))
        window, shift = self.window_size, self.shift_size
        # Zeros, not normalised tokens: they take part in the attention, as published.
        x = F.pad(self.norm1(x), [0, 0, *_far_ends(grid, window)])
        shifted = any(shift)
        if shifted:
            x = torch.roll(x, [-n for n in shift], axes)
        x = self._attended(x, mask_matrix if shifted else None)
        if shifted:
            x = torch.roll(x, list(shift), axes)
        for axis, n in zip(axes, grid, strict=True):
            x = x.narrow(axis, 0, n)
        return x

    def _attended(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attention inside of the windows of (B, *grid, C), a grid of whole windows."""
        window, grid = self.window_size, x.shape[:-1]
        if not torch.compiler.is_compiling():
            tokens = self.attn(window_partition(x, window), mask)
            reversed_: Tensor = window_reverse(tokens.view(-1, *window, tokens.shape[-1]), window, grid)
            return reversed_
        # Views of windows would be bound to grids that have several along each axis: tokens are picked by number.
        places = places_in_windows(grid[1:], window, x.device)
        tokens = x.flatten(1, -2).index_select(1, places.argsort()).view(-1, math.prod(window), x.shape[-1])
        attended: Tensor = self.attn(tokens, mask).view(len(x), -1, x.shape[-1]).index_select(1, places).view(x.shape)
        return attended


class SwinStage(nn.Module):
    """Blocks one after the other, every second one with shifted windows.

    Args:
        dim: channels.
        heads: of the attention.
        window: tokens along each axis.
        qkv_bias: whether queries, keys and values have a bias.
        drop_paths: of each block the probability that a sample skips a branch in training.
        dropout: see :class:`SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        window: Sequence[int],
        qkv_bias: bool,
        drop_paths: Sequence[float],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = tuple(window)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, heads, window, bool(i % 2), qkv_bias, rate, dropout) for i, rate in enumerate(drop_paths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, C) to the same, any grid."""
        mask = shift_mask(x.shape[1:-1], self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class SwinEncoder(nn.Module):
    """Features of a pair on grids of a quarter, an eighth and so on of the image.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the image.
        embed_dim: channels of the finest grid; they double from grid to grid.
        depths: blocks of each stage.
        heads: of each stage.
        window: tokens along each axis.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability that a sample skips a branch of the last block in training; it grows from 0 evenly.
        outputs: stages whose features are wanted.
        dropout: see :class:`SwinBlock`.

    Attributes:
        unit: sides of the image have to be multiples of it.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: Sequence[int],
        qkv_bias: bool,
        drop_path: float,
        outputs: Sequence[int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(PATCH, in_channels, embed_dim, nn.LayerNorm, spatial_dims)
        # Arithmetic, not `linspace`: on the meta device a tensor has no values.
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        self.stages, self.merge = nn.ModuleList(), nn.ModuleList()
        for i, (depth, n) in enumerate(zip(depths, heads, strict=True)):
            before, dim = sum(depths[:i]), embed_dim * 2**i
            self.stages.append(SwinStage(dim, n, window, qkv_bias, rates[before : before + depth], dropout))
            if i < len(depths) - 1:
                self.merge.append(PatchMergingV2(dim, spatial_dims=spatial_dims))
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(embed_dim * 2**i) for i in outputs})
        self.unit = PATCH * 2 ** (len(depths) - 1)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Features of the wanted stages.

        Args:
            image: (B, in_channels, *spatial), sides that are multiples of ``unit``.

        Returns:
            Stage to (B, embed_dim * 2 ** stage, *spatial / (4 * 2 ** stage)), channels last in memory.
        """
        x = self.patch_embed(image).movedim(1, image.ndim - 1)
        features: dict[int, Tensor] = {}
        for i, stage in enumerate(self.stages):
            x = stage(self.merge[i - 1](x) if i else x)
            if str(i) in self.norms:
                features[i] = self.norms[str(i)](x).movedim(x.ndim - 1, 1)
        return features


def shift_mask(grid: Sequence[int], window: Sequence[int], device: torch.device) -> Tensor:
    """What is added to the attention inside of windows that are shifted by half.

    Args:
        grid: tokens along each axis, before padding to whole windows.
        window: tokens along each axis.
        device: where it is made.

    Returns:
        (windows, N, N): 0 between tokens that were neighbours before the shift, else -100.
    """
    region = torch.zeros((), device=device)
    for n, w in zip(grid, window, strict=True):
        n = (n + w - 1) // w * w
        place = torch.arange(n, device=device)
        part = (place >= n - w).to(region.dtype) + (place >= n - w // 2).to(region.dtype)
        region = 3 * region[..., None] + part
    places = places_in_windows(region.shape, window, device)
    of_window = region.flatten()[places.argsort()].view(-1, math.prod(window))
    return (of_window[:, None] != of_window[:, :, None]).to(region.dtype) * _APART


def places_in_windows(grid: Sequence[int], window: Sequence[int], device: torch.device) -> Tensor:
    """Where the tokens of a grid are when it is cut into windows, one after the other.

    Args:
        grid: tokens along each axis, a multiple of the window.
        window: tokens along each axis.
        device: where it is made.

    Returns:
        (tokens,), whole numbers, for the tokens of the flattened grid.
    """
    of_window, inside = (torch.zeros((), dtype=torch.long, device=device) for _ in range(2))
    for n, w in zip(grid, window, strict=True):
        place = torch.arange(n, device=device)
        of_window = of_window[..., None] * (n // w) + place // w
        inside = inside[..., None] * w + place % w
    return (of_window * math.prod(window) + inside).flatten()


def _far_ends(grid: Sequence[int], window: Sequence[int]) -> list[int]:
    """Tokens to be added behind each axis, in the order of ``F.pad``."""
    missing = [(n + w - 1) // w * w - n for n, w in zip(grid, window, strict=True)]
    return [amount for n in reversed(missing) for amount in (0, n)]

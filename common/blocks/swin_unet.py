# SPDX-License-Identifier: Apache-2.0
"""The U-Net of TransMorph and its relatives: a Swin encoder of the pair, and blocks that double its grids.

Source: Chen et al., "TransMorph" (Medical Image Analysis 82, 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.convolution import convolve
from common.blocks.remade import Remade, not_stored, stored
from common.blocks.room import make_room
from common.blocks.skip_decoder import ConvNorm, DecoderBlock, Norm
from common.tracing import without_autocast


class Fine(NamedTuple):
    """A block of the decoder on a grid finer than that of the tokens.

    Attributes:
        skip: channels of what it sees of the images; 0 for nothing.
        out: channels of its result.
    """

    skip: int
    out: int


class SwinUNet(nn.Module):
    """A pair (B, 2, *spatial) to features on the grid of a quarter, of a half or of the images.

    Args:
        spatial_dims: 2 or 3.
        embed_dim: channels on the grid of a quarter; they double from grid to grid.
        depths: blocks of each stage of the encoder.
        heads: of the attention of each stage.
        window: of the attention, tokens along each axis; in two dimensions the first two count.
        fine: blocks on the grids of a half and of the images, as many as there are wanted.
        qkv_bias: whether queries, keys and values of the attention have a bias.
        drop_path: probability that a sample skips a branch of the encoder's last block in training.
        trans_skip: whether the decoder sees features of the encoder, beside those of its last stage.
        norm: of the features of the images.
        dropout: probability that a value of the encoder's MLPs or projections, a weight of its attention or a channel
            of the features of the images is dropped.

    Attributes:
        unit: sides of the images have to be multiples of it.
    """

    def __init__(
        self,
        spatial_dims: int,
        *,
        embed_dim: int,
        depths: Sequence[int],
        heads: Sequence[int],
        window: Sequence[int],
        fine: Sequence[Fine],
        qkv_bias: bool = False,
        drop_path: float = 0.0,
        trans_skip: bool = True,
        norm: Norm = "instance",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        last = len(depths) - 1
        outputs = range(last + 1) if trans_skip else [last]
        tokens = window[:spatial_dims]
        # MONAI's networks take two seconds and 0.2 GB to import, which no other network needs.
        from common.blocks.swin import SwinEncoder

        self.encoder = SwinEncoder(
            spatial_dims, 2, embed_dim, depths, heads, tokens, qkv_bias, drop_path, outputs, dropout
        )
        self.unit = self.encoder.unit
        widths = [embed_dim * 2**i for i in reversed(range(last))]
        blocks = [*(Fine(n if trans_skip else 0, n) for n in widths), *fine]
        ins = [embed_dim * 2**last, *(block.out for block in blocks)]
        self.up = nn.ModuleList(
            DecoderBlock(spatial_dims, n, block.skip, block.out) for n, block in zip(ins, blocks, strict=False)
        )
        self.sees_images = [block.skip > 0 for block in fine]
        self.of_images = nn.ModuleList(ConvNorm(spatial_dims, 2, block.skip, norm) for block in fine if block.skip)
        self.dropout = (nn.Dropout2d if spatial_dims == 2 else nn.Dropout3d)(dropout) if dropout else None

    def forward(self, image: Tensor) -> Remade:
        """(B, 2, *spatial), sides that are multiples of ``unit``, to what the last block returns."""
        skips = self._skips(image)
        x = skips.pop(0)
        assert x is not None
        # The most is alive in the finest block, on the way there and then on the way back.
        make_room(x.value)
        for block in self.up:
            x = block(x, skips.pop(0))
        make_room(x.value)
        return x

    def _skips(self, image: Tensor) -> list[Remade | None]:
        """What the blocks of the decoder see, one after the other, after what the first one begins with."""
        features = self.encoder(image)
        coarse = [features.get(i) for i in reversed(range(len(self.encoder.stages)))]
        skips = [None if x is None else stored(x) for x in coarse]
        layers = iter(self.of_images)
        for sees_images, x in zip(self.sees_images, (halved(image), image), strict=False):
            skips.append(self._dropped(next(layers)(stored(x))) if sees_images else None)
        return skips

    def _dropped(self, x: Remade) -> Remade:
        return x if self.dropout is None else stored(self.dropout(x.value))


class FieldHead(nn.Module):
    """Features (B, in_channels, *spatial) to a field (B, d, *spatial), in float32 whatever autocast says.

    Of a fresh network half precision would leave nothing.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features.
        deviation: of the fresh weights.
        bias: the fresh one.
    """

    def __init__(self, spatial_dims: int, in_channels: int, deviation: float = 1e-5, bias: float = 0.0) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.conv = kind(in_channels, spatial_dims, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=deviation)
        assert self.conv.bias is not None
        nn.init.constant_(self.conv.bias, bias)

    def forward(self, x: Remade) -> Tensor:
        """The field."""
        assert self.conv.bias is not None
        with without_autocast(x.value), not_stored(x):
            dtype = torch.promote_types(x.value.dtype, torch.float32)
            return convolve(x.value.to(dtype), self.conv.weight, self.conv.bias)


def halved(image: Tensor) -> Tensor:
    """Means of three voxels along each axis, every second one of them; zeros outside count."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image, 3, 2, 1)

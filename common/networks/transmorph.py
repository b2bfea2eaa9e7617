# SPDX-License-Identifier: Apache-2.0
"""TransMorph: a Swin encoder of the pair, and convolutions that lead its features back to the grid of the images.

Paper: J. Chen et al., "TransMorph: Transformer for unsupervised medical image registration", Medical Image Analysis 82
(2022) 102615. Repository: junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT). Official weights:
:mod:`common.weights.transmorph`.

On purpose different from the published code: one class for the networks of IXI and of OASIS; any image size (padded
inside); two dimensions; grids and indices are no part of the state dict; activations are made again in the backward
pass. Where the published warp takes voxel centres for outer edges, the ``ddf`` says where it really samples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.convolution import convolve
from common.blocks.remade import Remade, not_stored, stored
from common.blocks.skip_decoder import ConvNorm, DecoderBlock, doubled
from common.blocks.swin import SwinEncoder
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, wants
from common.spatial.outer_edges import sampled_at_edges

Resolution = Literal["full", "half"]
_OASIS: dict[str, Any] = {"output_resolution": "half", "align_corners": False}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ixi": {},
    "oasis": _OASIS,
    "large": {**_OASIS, "embed_dim": 128, "depths": (2, 2, 12, 2), "heads": (4, 4, 8, 16)},
    "small": {"embed_dim": 48, "heads": (4, 4, 4, 4)},
    "published_tiny": {"embed_dim": 6, "heads": (2, 2, 4, 4)},
    "no_conv_skip": {"conv_skip": False},
    "no_trans_skip": {"trans_skip": False},
    "no_skip": {"conv_skip": False, "trans_skip": False},
    "tiny": {"embed_dim": 4, "depths": (1, 2), "heads": (1, 2), "window": (2, 3, 2), "head_channels": 4},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class TransMorph(nn.Module):
    """Windows of attention on coarse grids, then doubling after doubling with skips from the encoder and the images.

    The default is the published network for IXI.

    Args:
        spatial_dims: 2 or 3.
        embed_dim: channels on the grid of a quarter; they double from grid to grid.
        depths: blocks of each stage of the encoder.
        heads: of the attention of each stage.
        window: of the attention, tokens along each axis; in two dimensions the first two count.
        output_resolution: "full": the decoder ends on the grid of the images. "half": one doubling before, and the
            displacement is interpolated.
        align_corners: False for networks whose published warp takes voxel centres for outer edges.
        head_channels: of the last block of the decoder.
        qkv_bias: whether queries, keys and values have a bias.
        drop_path: probability that a sample skips a branch of the encoder's last block in training.
        conv_skip: whether the decoder sees features of the images.
        trans_skip: whether it sees features of the encoder, beside those of its last stage.

    Raises:
        InputError: for another number of dimensions or an argument that is none of its kind.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        window: Sequence[int] = (5, 6, 7),
        output_resolution: Resolution = "full",
        align_corners: bool = True,
        head_channels: int = 16,
        qkv_bias: bool = False,
        drop_path: float = 0.3,
        conv_skip: bool = True,
        trans_skip: bool = True,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "embed_dim": embed_dim,
            "depths": [*depths],
            "heads": [*heads],
            "window": [*window],
            "output_resolution": output_resolution,
            "align_corners": align_corners,
            "head_channels": head_channels,
            "qkv_bias": qkv_bias,
            "drop_path": drop_path,
            "conv_skip": conv_skip,
            "trans_skip": trans_skip,
        }
        _check(**self.arguments)
        self.spatial_dims, self.align_corners = spatial_dims, align_corners
        stages = len(depths)
        outputs = range(stages) if trans_skip else [stages - 1]
        self.encoder = SwinEncoder(
            spatial_dims, 2, embed_dim, depths, heads, window[:spatial_dims], qkv_bias, drop_path, outputs
        )
        # Of the grids of a quarter and coarser, then of a half and of the images.
        skips = [embed_dim * 2**i if trans_skip else 0 for i in reversed(range(stages - 1))]
        outs = [embed_dim * 2**i for i in reversed(range(stages - 1))]
        images = [embed_dim // 2, head_channels] if output_resolution == "full" else [embed_dim // 2]
        skips += [n if conv_skip else 0 for n in images]
        outs += [*images[:-1], head_channels]
        ins = [embed_dim * 2 ** (stages - 1), *outs]
        self.up = nn.ModuleList(
            DecoderBlock(spatial_dims, *channels) for channels in zip(ins[:-1], skips, outs, strict=True)
        )
        self.of_images = nn.ModuleList(ConvNorm(spatial_dims, 2, n) for n in (images if conv_skip else []))
        self.halved_output = output_resolution == "half"
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.head = kind(head_channels, spatial_dims, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-5)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        # Convolutions of this size run up to twice as fast with channels last; the state dict does not see it.
        layout = torch.channels_last_3d if spatial_dims == 3 else torch.channels_last
        # torch documents this form of `to`, its annotations lack it.
        self.to(memory_format=layout)  # type: ignore[call-overload]

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities from 0 to 1.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for, ``flow``:
            the displacement as the published network gives it and its penalty looks at; it differs from ``ddf`` without
            ``align_corners``.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        flow = self._flow(F.pad(image, _padding(size, self.encoder.unit)))
        ddf = crop(flow if self.align_corners else sampled_at_edges(flow), size)
        if not details:
            return ddf
        return {"ddf": ddf, **({"flow": crop(flow, size)} if wants(details, "flow") else {})}

    def _flow(self, image: Tensor) -> Tensor:
        """What the published network returns, float32."""
        skips = self._skips(image)
        x = skips.pop(0)
        assert x is not None
        for block in self.up:
            x = block(x, skips.pop(0))
        # In float32 also under autocast: of a fresh network half precision would leave nothing.
        with torch.autocast(image.device.type, enabled=False), not_stored(x):
            dtype = torch.promote_types(x.value.dtype, torch.float32)
            flow = convolve(x.value.to(dtype), self.head.weight, self.head.bias)
        return doubled(flow) if self.halved_output else flow

    def _skips(self, image: Tensor) -> list[Remade | None]:
        """What the blocks of the decoder see, one after the other, after what the first one begins with."""
        features = self.encoder(image)
        coarse = [features.get(i) for i in reversed(range(len(self.encoder.stages)))]
        skips = [None if x is None else stored(x) for x in coarse]
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        images = [pool(image, 3, 2, 1), image]
        skips += [convolution(stored(x)) for convolution, x in zip(self.of_images, images, strict=False)]
        return skips + [None] * (1 + len(self.up) - len(skips))


def _padding(size: Sequence[int], unit: int) -> list[int]:
    """Zeros at the far end of each axis: a multiple of ``unit``."""
    missing = [(n + unit - 1) // unit * unit - n for n in size]
    return [amount for n in reversed(missing) for amount in (0, n)]


def _check(
    spatial_dims: int,
    embed_dim: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: Sequence[int],
    output_resolution: str,
    head_channels: int,
    drop_path: float,
    **switches: bool,
) -> None:
    if spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
    check_numbers(1, embed_dim=embed_dim, head_channels=head_channels)
    for name, numbers in (("depths", depths), ("heads", heads), ("window", window)):
        check_numbers(1, **{f"{name}[{i}]": n for i, n in enumerate(numbers)})
    if not depths or len(depths) != len(heads):
        raise InputError(f"depths is {depths} and heads {heads}; give as many of the one as of the other.")
    if embed_dim % 2 or any(embed_dim * 2**i % n for i, n in enumerate(heads)):
        raise InputError(
            f"embed_dim is {embed_dim} and heads {heads}; give an even number of channels that, doubled from stage to "
            "stage, the heads divide."
        )
    if len(window) < spatial_dims:
        raise InputError(f"window is {window}; give a number of tokens for each of the {spatial_dims} axes.")
    if output_resolution not in ("full", "half"):
        raise InputError(f"output_resolution is {output_resolution!r}; expected 'full' or 'half'.")
    if isinstance(drop_path, bool) or not isinstance(drop_path, (int, float)) or not 0 <= drop_path < 1:
        raise InputError(f"drop_path is {drop_path!r}; give a probability from 0 to below 1.")

# SPDX-License-Identifier: Apache-2.0
"""TransMorph: a Swin encoder of the pair, and convolutions that lead its features back to the grid of the images.

Paper: J. Chen et al., "TransMorph: Transformer for unsupervised medical image registration", Medical Image Analysis 82
(2022) 102615. Repository: junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT). Official weights:
:mod:`common.weights.transmorph`.

On purpose different from the published code: one class for the networks of IXI and of OASIS; any image size (padded
inside); two dimensions; grids and indices are no part of the state dict; activations are made again in the backward
pass. Where the published warp takes voxel centres for outer edges, the ``ddf`` says where it really samples.
TransMorph-Bayes, which draws what it drops in evaluation, too, and takes the draw that fits best, is the same network
with ``dropout``: here the ``ddf`` is that without anything dropped, and draws say how far it scatters.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.draws import dropping, own_random_numbers, standard_deviation
from common.blocks.memory_format import channels_last
from common.blocks.skip_decoder import doubled
from common.blocks.swin_unet import FieldHead, Fine, SwinUNet
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
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
    "bayes": {"dropout": 0.15, "samples": 25},
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
        dropout: probability that a value of the encoder, a weight of its attention or a channel of the features of the
            images is dropped in training; with it there is a ``deviation``.
        samples: draws of what is dropped that ``deviation`` is found from, 2 or more.

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
        dropout: float = 0.0,
        samples: int = 20,
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
            "dropout": dropout,
            "samples": samples,
        }
        check_encoder(spatial_dims, embed_dim, depths, heads, window, drop_path)
        check_decoder(output_resolution, head_channels)
        check_probability(dropout=dropout)
        check_numbers(2, samples=samples)
        self.dropout, self.samples = dropout, samples
        self.spatial_dims, self.align_corners = spatial_dims, align_corners
        self.halved_output = output_resolution == "half"
        self.unet = SwinUNet(
            spatial_dims,
            embed_dim=embed_dim,
            depths=depths,
            heads=heads,
            window=window,
            fine=fine_blocks(embed_dim, head_channels, output_resolution, conv_skip),
            qkv_bias=qkv_bias,
            drop_path=drop_path,
            trans_skip=trans_skip,
            dropout=dropout,
        )
        self.head = FieldHead(spatial_dims, head_channels)
        channels_last(self, spatial_dims)

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
            ``align_corners``. With ``dropout`` there is ``deviation``, too: the standard deviation of the displacement,
            (B, d, *spatial) in voxels, found from ``samples`` draws, the same each time, and without a gradient.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, padding(size, self.unet.unit))
        flow = self._flow(image)
        outputs = {"ddf": crop(self._sampled(flow), size)}
        if not details:
            return outputs["ddf"]
        if wants(details, "flow"):
            outputs["flow"] = crop(flow, size)
        if self.dropout and wants(details, "deviation"):
            # Pair by pair, so that each has the same draws whatever the batch.
            deviations = [standard_deviation(self._draws(one)) for one in image.split(1)]
            outputs["deviation"] = crop(torch.cat(deviations), size)
        return outputs

    def _flow(self, image: Tensor) -> Tensor:
        """What the published network returns, float32."""
        flow: Tensor = self.head(self.unet(image))
        return doubled(flow) if self.halved_output else flow

    def _sampled(self, flow: Tensor) -> Tensor:
        """Where the published warp looks."""
        return flow if self.align_corners else sampled_at_edges(flow)

    @torch.no_grad()
    def _draws(self, image: Tensor) -> Iterator[Tensor]:
        """Displacements of the network without what is dropped, on the grid of the padded images."""
        with own_random_numbers(image.device), dropping(self):
            for _ in range(self.samples):
                yield self._sampled(self._flow(image))


def fine_blocks(embed_dim: int, head_channels: int, output_resolution: str, conv_skip: bool = True) -> list[Fine]:
    """The blocks of the decoder on the grids of a half and, for "full", of the images."""
    widths = [embed_dim // 2, head_channels]
    skips = widths if conv_skip else [0, 0]
    if output_resolution == "half":
        return [Fine(skips[0], head_channels)]
    return [Fine(*block) for block in zip(skips, widths, strict=True)]


def check_encoder(
    spatial_dims: int,
    embed_dim: int,
    depths: Sequence[int],
    heads: Sequence[int],
    window: Sequence[int],
    drop_path: float,
) -> None:
    """Refuse arguments of a Swin encoder that are none of their kind or do not fit each other.

    Raises:
        InputError: naming the argument and its value.
    """
    if spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
    check_numbers(1, embed_dim=embed_dim)
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
    check_probability(drop_path=drop_path)


def check_probability(**arguments: object) -> None:
    """Refuse arguments of a network that are no probabilities below 1.

    Raises:
        InputError: naming the argument and its value.
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
            raise InputError(f"{name} is {value!r}; give a probability from 0 to below 1.")


def check_decoder(output_resolution: str, head_channels: int) -> None:
    """Refuse arguments of a decoder that are none of their kind.

    Raises:
        InputError: naming the argument and its value.
    """
    check_numbers(1, head_channels=head_channels)
    if output_resolution not in ("full", "half"):
        raise InputError(f"output_resolution is {output_resolution!r}; expected 'full' or 'half'.")

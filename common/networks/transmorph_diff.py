# SPDX-License-Identifier: Apache-2.0
"""TransMorph-diff: the U-Net of TransMorph proposes how velocities are distributed.

Papers: J. Chen et al., "TransMorph", Medical Image Analysis 82 (2022) 102615; A. Dalca et al., "Unsupervised learning
for fast probabilistic diffeomorphic registration", MICCAI 2018. Repository:
junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT). Official weights:
:mod:`common.weights.transmorph_diff`.

On purpose different from the published code: any image size (padded inside); the mean counts outside of training, and
how far displacements scatter is found beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.draws import own_random_numbers, standard_deviation
from common.blocks.memory_format import channels_last
from common.blocks.skip_decoder import doubled
from common.blocks.swin_unet import FieldHead, SwinUNet
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
from common.networks.transmorph import Resolution, check_decoder, check_encoder, fine_blocks
from common.spatial import integrate

LOG_VARIANCE, LOG_VARIANCE_DEVIATION = -10.0, 1e-10
"""Of a fresh network, and of the fresh weights that it comes from."""
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ixi": {},
    "ixi_half": {"output_resolution": "half"},
    "tiny": {
        "embed_dim": 4,
        "depths": (1, 2),
        "heads": (1, 2),
        "window": (2, 3, 2),
        "head_channels": 4,
        "int_steps": 2,
        "samples": 2,
    },
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class TransMorphDiff(nn.Module):
    """TransMorph with two heads, for mean and variance of the velocity at each voxel, and scaling and squaring.

    The default is the published network for IXI.

    Args:
        spatial_dims: 2 or 3.
        embed_dim: channels on the grid of a quarter; they double from grid to grid.
        depths: blocks of each stage of the encoder.
        heads: of the attention of each stage.
        window: of the attention, tokens along each axis; in two dimensions the first two count.
        output_resolution: "full": the velocity is on the grid of the images. "half": on half as many voxels along each
            axis, and the displacement, whose values count in voxels of the images, is interpolated.
        head_channels: of the last block of the decoder.
        int_steps: squarings.
        samples: draws of the velocity that ``deviation`` is found from, 2 or more.
        drop_path: probability that a sample skips a branch of the encoder's last block in training.

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
        head_channels: int = 16,
        int_steps: int = 7,
        samples: int = 20,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "embed_dim": embed_dim,
            "depths": [*depths],
            "heads": [*heads],
            "window": [*window],
            "output_resolution": output_resolution,
            "head_channels": head_channels,
            "int_steps": int_steps,
            "samples": samples,
            "drop_path": drop_path,
        }
        check_encoder(spatial_dims, embed_dim, depths, heads, window, drop_path)
        check_decoder(output_resolution, head_channels)
        check_numbers(0, int_steps=int_steps)
        check_numbers(2, samples=samples)
        self.spatial_dims, self.int_steps, self.samples = spatial_dims, int_steps, samples
        self.halved_output = output_resolution == "half"
        self.unet = SwinUNet(
            spatial_dims,
            embed_dim=embed_dim,
            depths=depths,
            heads=heads,
            window=window,
            fine=fine_blocks(embed_dim, head_channels, output_resolution),
            drop_path=drop_path,
        )
        self.head = FieldHead(spatial_dims, head_channels)
        self.log_variance = FieldHead(spatial_dims, head_channels, LOG_VARIANCE_DEVIATION, LOG_VARIANCE)
        channels_last(self, spatial_dims)

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair, in training by a velocity that is drawn, otherwise by the mean.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities from 0 to 1.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``velocity``: the mean, on the grid of the image padded at the far ends to the working size of the
              network, or of half of it; it lasts for 2 ** -int_steps of the time: nothing divides it;
            - ``log_sigma``: the logarithm of its standard deviation, of the same shape;
            - ``deviation``: the standard deviation of the displacement, (B, d, *spatial) in voxels, found from
              ``samples`` draws, the same each time, and without a gradient.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        features = self.unet(F.pad(image, padding(size, self.unet.unit)))
        # Published weights speak of variances.
        mean, log_sigma = self.head(features), 0.5 * self.log_variance(features)
        chosen = mean + log_sigma.exp() * torch.randn_like(mean) if self.training else mean
        ddf = crop(self._integrated(chosen), size)
        if not details:
            return ddf
        outputs = {"velocity": mean, "log_sigma": log_sigma}
        outputs = {name: output for name, output in outputs.items() if wants(details, name)}
        if wants(details, "deviation"):
            draws = self._draws(mean.detach(), log_sigma.detach())
            outputs["deviation"] = crop(standard_deviation(draws), size)
        return {"ddf": ddf, **outputs}

    @torch.no_grad()
    def _draws(self, mean: Tensor, log_sigma: Tensor) -> Iterator[Tensor]:
        """Displacements of random velocities, of all pairs with the same noise."""
        sigma = log_sigma.exp()
        with own_random_numbers(mean.device):
            for _ in range(self.samples):
                yield self._integrated(mean + sigma * torch.randn_like(mean[:1]))

    def _integrated(self, velocity: Tensor) -> Tensor:
        """The displacement of a velocity, on the grid of the padded images."""
        ddf = integrate(2.0**self.int_steps * velocity, self.int_steps)
        return doubled(ddf) if self.halved_output else ddf

# SPDX-License-Identifier: Apache-2.0
"""One step of TransMorphTVF: what the images, warped so far, add to features that all steps share."""

from __future__ import annotations

from torch import Tensor, nn

from common.blocks.remade import Remade, stored
from common.blocks.skip_decoder import ConvNorm, Norm
from common.blocks.swin_unet import FieldHead


class TimeStep(nn.Module):
    """Features and the pair, moved so far, to a velocity.

    Args:
        spatial_dims: 2 or 3.
        features: channels of the shared features.
        skip: channels of those of the pair.
        head_channels: that the last convolution makes the velocity of.
        norm: how those of the pair are normalised.
    """

    def __init__(self, spatial_dims: int, features: int, skip: int, head_channels: int, norm: Norm) -> None:
        super().__init__()
        self.of_images = ConvNorm(spatial_dims, 2, skip, norm)
        self.first = ConvNorm(spatial_dims, features + skip, head_channels)
        self.second = ConvNorm(spatial_dims, head_channels, head_channels)
        self.head = FieldHead(spatial_dims, head_channels)

    def forward(self, features: Remade, pair: Tensor) -> Tensor:
        """Look at the pair.

        Args:
            features: (B, features, *spatial).
            pair: (B, 2, *spatial), moving as far as it has been moved and fixed.

        Returns:
            (B, d, *spatial), float32.
        """
        joined = self.first(features, self.of_images(stored(pair)))
        velocity: Tensor = self.head(self.second(joined))
        return velocity

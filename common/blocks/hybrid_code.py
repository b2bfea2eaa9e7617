# SPDX-License-Identifier: Apache-2.0
"""The code of a pair that NePhi's fields are made of: one vector for the whole of it, and a coarse grid of vectors.

Source: Tian et al., "NePhi", ECCV 2024 (arXiv 2309.07322); where the text is silent this follows the published numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.spatial import resize_image
from common.spatial.resize import LINEAR
from common.tracing import is_traced

_logger = logging.getLogger(__name__)
SLOPE = 0.2
"""Of the activations below 0."""
HIDDEN = 256
"""Channels between the two layers of the head for the shared code."""


class HybridCode(NamedTuple):
    """Codes of some pairs.

    Attributes:
        shared: (B, g), what all points have in common.
        local: (B, l, *grid), interpolated linearly between the corners of the image.
    """

    shared: Tensor
    local: Tensor


class HybridEncoder(nn.Module):
    """Reads the code off a pair: blocks that halve the image, a head on one of them and a head on the last.

    The head on the last one is made for one size: images of another are resampled to it, and the log says so once.

    Args:
        size: of the images, two or three numbers.
        channels: of the blocks.
        local_level: the block that the local code comes from.
        latent: channels of the shared and of the local code.

    Attributes:
        tied: names of the weights whose shape depends on the size.
    """

    tied = ("hidden.weight",)

    def __init__(self, size: Sequence[int], channels: Sequence[int], local_level: int, latent: int) -> None:
        super().__init__()
        dims = len(size)
        self.size, self._said = tuple(size), False
        self.trunk = nn.ModuleList(_Block(dims, *pair, 2) for pair in zip([2, *channels], channels, strict=False))
        self.local_level = local_level
        self.local = _Block(dims, channels[local_level], latent, 1)
        self.hidden = nn.Linear(channels[-1] * math.prod(halved(size, len(channels))), HIDDEN)
        self.shared = nn.Linear(HIDDEN, latent)

    def forward(self, image: Tensor) -> HybridCode:
        """The code of pairs (B, 2, *spatial), in float32 at least."""
        x = self._resampled(image)
        for level, block in enumerate(self.trunk):
            x = block(x)
            if level == self.local_level:
                local = self.local(x)
        shared = self.shared(F.leaky_relu(self.hidden(x.flatten(1)), SLOPE))
        return HybridCode(*(code.to(torch.promote_types(code.dtype, torch.float32)) for code in (shared, local)))

    def _resampled(self, image: Tensor) -> Tensor:
        if is_traced():
            # Without looking at the size, which would stay as it is.
            return F.interpolate(image, size=self.size, mode=LINEAR[len(self.size)], align_corners=True)
        if image.shape[2:] != self.size and not self._said:
            self._said = True
            _logger.warning(
                "The encoder is made for images of %s voxels, those of its training: it sees these, of %s, resampled "
                "to that size, and may register them worse.",
                *(" x ".join(str(n) for n in size) for size in (self.size, image.shape[2:])),
            )
        return resize_image(image, self.size)


class CodeTable(nn.Module):
    """Codes that are trained themselves, a row for each pair (auto-decoder).

    Args:
        code: that training begins with, (pairs, ...).
    """

    def __init__(self, code: HybridCode) -> None:
        super().__init__()
        self.shared, self.local = (nn.Parameter(part.detach().clone()) for part in code)

    def forward(self, index: Tensor) -> HybridCode:
        """The codes of the pairs with these numbers, (B,)."""
        return HybridCode(self.shared[index], self.local[index])


def random_code(pairs: int, latent: int, grid: Sequence[int]) -> HybridCode:
    """What a table begins with where nothing is known of the pairs: normal, of a length near 1 everywhere.

    Args:
        pairs: number of rows.
        latent: channels of the shared and of the local code.
        grid: size of the local code.
    """
    deviation = 1 / math.sqrt(latent)
    return HybridCode(deviation * torch.randn(pairs, latent), deviation * torch.randn(pairs, latent, *grid))


class _Block(nn.Module):
    """Convolution, batch normalisation, activation."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.conv = convolution(in_channels, out_channels, 3, stride, 1)
        self.norm = norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


def halved(size: Sequence[int], times: int) -> tuple[int, ...]:
    """What is left of a size that is halved some times, rounded up."""
    return tuple(-(-n // 2**times) for n in size)

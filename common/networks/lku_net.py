# SPDX-License-Identifier: Apache-2.0
"""LKU-Net: a U-Net with large kernels.

Paper: X. Jia et al., "U-Net vs Transformer: is U-Net outdated in medical image registration?", MLMI 2022, arXiv
2208.04939. Repository: xi-jia/LKU-Net (no licence). Official weights: :mod:`common.weights.lku_net`.

On purpose different from the published code: displacements in voxels; any image size (padded inside), also of the
network that works at half resolution; parallel convolutions are made as one; layers that are never called do not exist;
in two dimensions integration samples corner to corner, as in three (published: ``align_corners=False``).
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.lku_net import ActivatedConvolution, FoldedKernelBlock, WayUp
from common.blocks.memory_format import channels_last
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
from common.spatial import integrate
from common.spatial.resize import LINEAR, voxel_ratios

WIDTHS = (1, 2, 4, 8, 8)
"""Channels of the levels of the way down, finest first, in units of the start channels."""
WAYS_UP = ((2, 1, 2, 2), (2, 2, 4, 2), (4, 4, 4, 2), (8, 8, 8, 4))
"""What comes up to each level, what lies beside it, and both convolutions, finest first, in the same units."""
UNIT = 2 ** (len(WIDTHS) - 1)
"""Sides of what the U-Net sees are multiples of it."""
KERNEL_SIZES = {2: 7, 3: 5}
"""The published large kernels, by number of axes."""

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ixi_4": {"start_channels": 4, "int_steps": 7},
    "ixi_8": {"start_channels": 8, "int_steps": 7},
    "oasis": {"start_channels": 32},
    "oasis_half": {"start_channels": 32, "half_res": True},
    "oasis_2d": {"spatial_dims": 2},
    "tiny": {"start_channels": 2},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class LKUNet(nn.Module):
    """A U-Net of five levels whose way down has blocks of large kernels, from both images to a displacement.

    Args:
        spatial_dims: 2 or 3.
        start_channels: c, channels at full resolution.
        kernel_size: of the large-kernel blocks, odd and from 5 on; None for the published 5 in three dimensions and
            7 in two.
        int_steps: squarings of scaling and squaring, 7 in the published "diff" networks; 0 takes what is estimated as
            displacement.
        half_res: whether the U-Net ends at half resolution and its displacement is interpolated.

    Raises:
        InputError: for another number of dimensions, an even or smaller kernel, or other numbers below 1 or 0.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        start_channels: int = 8,
        kernel_size: int | None = None,
        int_steps: int = 0,
        half_res: bool = False,
    ) -> None:
        super().__init__()
        if spatial_dims not in KERNEL_SIZES:
            raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
        check_numbers(1, start_channels=start_channels)
        check_numbers(0, int_steps=int_steps)
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "start_channels": start_channels,
            "kernel_size": kernel_size,
            "int_steps": int_steps,
            "half_res": half_res,
        }
        kernel = KERNEL_SIZES[spatial_dims] if kernel_size is None else kernel_size
        check_numbers(5, kernel_size=kernel)
        if kernel % 2 == 0:
            raise InputError(f"kernel_size is {kernel}; give an odd number from 5 on.")
        self.spatial_dims, self.int_steps = spatial_dims, int_steps
        widths = [start_channels * n for n in WIDTHS]
        self.first = nn.ModuleList(ActivatedConvolution(spatial_dims, n, widths[0]) for n in (2, widths[0]))
        self.down = nn.ModuleList(
            nn.Sequential(
                ActivatedConvolution(spatial_dims, *pair, stride=2), FoldedKernelBlock(spatial_dims, pair[1], kernel)
            )
            for pair in pairwise(widths)
        )
        ways = [[start_channels * n for n in way] for way in WAYS_UP]
        # Finest first; the network of half resolution ends one level below.
        self.finest = int(half_res)
        self.up = nn.ModuleList(WayUp(spatial_dims, *way) for way in ways[self.finest :])
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.head = conv(2 * start_channels, spatial_dims, 3, padding=1, bias=False)
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
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,

            - ``velocity``: what was estimated, before integration, in voxels, at most half the image along each axis;
              without integration the ``ddf`` itself;
            - of networks that integrate ``inverse_ddf``, the way back.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        velocity = self._velocity(F.pad(image, padding(size, UNIT)))
        ddf = crop(self._integrated(velocity), size)
        if not details:
            return ddf
        outputs = {"ddf": ddf}
        if wants(details, "velocity"):
            outputs["velocity"] = crop(velocity, size)
        if self.int_steps and wants(details, "inverse_ddf"):
            outputs["inverse_ddf"] = crop(self._integrated(-velocity), size)
        return outputs

    def _velocity(self, image: Tensor) -> Tensor:
        x = image
        for layer in self.first:
            x = layer(x)
        skips = [x]
        for down in self.down:
            skips.append(down(skips[-1]))
        x = skips.pop()
        for level in reversed(range(self.finest, len(WAYS_UP))):
            x = self.up[level - self.finest](x, skips[level])
            del skips[level:]
        estimated: Tensor = self.head(x)
        # In units of which the image has two along each axis.
        field = F.softsign(estimated.to(torch.promote_types(estimated.dtype, torch.float32)))
        size = image.shape[2:]
        if self.finest:
            field = F.interpolate(field, scale_factor=2, mode=LINEAR[self.spatial_dims], align_corners=False)
        return field * voxel_ratios([3] * len(size), size, field).view(1, -1, *[1] * len(size))

    def _integrated(self, velocity: Tensor) -> Tensor:
        return integrate(velocity, self.int_steps, padding_mode="border")

# SPDX-License-Identifier: Apache-2.0
"""GradICON and uniGradICON: U-Nets from coarse to fine, trained to make the ways there and back undo each other.

Papers: H. Greer et al., "ICON: learning regular maps through inverse consistency", ICCV 2021, arXiv 2105.04459;
L. Tian et al., "GradICON: approximate diffeomorphisms via gradient inverse consistency", CVPR 2023, arXiv 2206.05897;
L. Tian et al., "uniGradICON: a foundation model for medical image registration", MICCAI 2024, arXiv 2403.05780.
Repositories: uncbiag/ICON, uncbiag/uniGradICON (Apache-2.0). Official weights: :mod:`common.weights.gradicon`.

On purpose different from the published code: displacements in voxels; images that are too small for the network are
padded inside.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.tall_unet import TallUNet
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, wants
from common.spatial import chain_ddf, chain_map, warp
from common.spatial.resize import voxel_ratios

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "unigradicon": {},
    "first_stage": {"halvings": (2, 1, 0)},
    "tiny": {"channels": (4, 4), "up_channels": (4, 4), "halvings": (1, 0, 0)},
}
"""Arguments of the published networks, of all data sets and of the first half of training, and small ones for tests."""


class GradICON(nn.Module):
    """U-Nets one after the other, each of which registers what those before it have left, on the same or a finer grid.

    The default is the published network.

    Args:
        spatial_dims: 2 or 3.
        channels: of each U-Net, after each halving, finest first.
        up_channels: of each U-Net, after each doubling, finest first.
        halvings: how often the images are halved before each U-Net sees them, in the order of the U-Nets: it falls by
            one or not at all, and ends with 0.

    Raises:
        InputError: for another number of dimensions, lists that differ in length or other halvings.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        channels: Sequence[int] = (16, 32, 64, 256, 512),
        up_channels: Sequence[int] = (16, 32, 64, 128, 256),
        halvings: Sequence[int] = (2, 1, 0, 0),
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "channels": [*channels],
            "up_channels": [*up_channels],
            "halvings": [*halvings],
        }
        _check(**self.arguments)
        self.spatial_dims = spatial_dims
        self.halvings = tuple(halvings)
        self.stages = nn.ModuleList(TallUNet(spatial_dims, channels, up_channels) for _ in halvings)
        # Every halving, which rounds up, needs two voxels.
        self.least = 2 ** (halvings[0] + len(channels) - 1) + 1

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

            - ``map``: the same as a function of points, whose coarse displacements are interpolated on their own grids;
            - ``inverse_ddf``, ``inverse_map``: those of the exchanged images, which costs as much again.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, _padding(size, self.least))
        working = image.shape[2:]
        fields = self._fields(image)
        ddf = crop(chain_ddf(fields, working), size)
        if not details:
            return ddf
        outputs: dict[str, Any] = {"ddf": ddf, "map": chain_map(fields, working)}
        if wants(details, "inverse_ddf") or wants(details, "inverse_map"):
            back = self._fields(image.flip(1))
            outputs |= {"inverse_ddf": crop(chain_ddf(back, working), size), "inverse_map": chain_map(back, working)}
        return {name: value for name, value in outputs.items() if name == "ddf" or wants(details, name)}

    def _fields(self, image: Tensor) -> list[Tensor]:
        """What each U-Net has found, in voxels of its own grid."""
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        pairs = [image]
        for _ in range(self.halvings[0]):
            pairs.append(pool(pairs[-1], 2, ceil_mode=True))
        fields: list[Tensor] = []
        for halvings, stage in zip(self.halvings, self.stages, strict=True):
            pair = pairs[halvings]
            if fields:
                warped = warp(pair[:, :1], chain_ddf(fields, pair.shape[2:]))
                pair = torch.cat([warped.to(pair.dtype), pair[:, 1:]], dim=1)
            fields.append(_in_voxels(stage(pair)))
        return fields


def _in_voxels(displacement: Tensor) -> Tensor:
    """Of one in units of the extent."""
    field = displacement.to(torch.promote_types(displacement.dtype, torch.float32))
    size = field.shape[2:]
    return field * voxel_ratios([2] * len(size), size, field).view(1, -1, *[1] * len(size))


def _padding(size: Sequence[int], least: int) -> list[int]:
    """Zeros at the far end of each axis that is shorter than ``least``.

    Arithmetic alone, see :func:`common.networks.contract.padded`; and one division, since ONNX runtimes do not cut off
    what is left of two in a row.
    """
    missing = [least // (least + n - n % least) * (least - n % least) for n in size]
    return [amount for n in reversed(missing) for amount in (0, n)]


def _check(spatial_dims: int, channels: Sequence[int], up_channels: Sequence[int], halvings: Sequence[int]) -> None:
    if spatial_dims not in (2, 3):
        raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
    if not channels or len(channels) != len(up_channels):
        raise InputError(f"channels is {channels} and up_channels {up_channels}; give as many of the one as the other.")
    lists = (("channels", channels, 1), ("up_channels", up_channels, 1), ("halvings", halvings, 0))
    for name, numbers, lowest in lists:
        check_numbers(lowest, **{f"{name}[{i}]": n for i, n in enumerate(numbers)})
    if not halvings or halvings[-1] != 0 or not {before - after for before, after in pairwise(halvings)} <= {0, 1}:
        raise InputError(
            f"halvings is {halvings}; give whole numbers that fall by one or not at all and end with 0, such as 2 1 0."
        )

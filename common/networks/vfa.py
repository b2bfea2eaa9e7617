# SPDX-License-Identifier: Apache-2.0
"""VFA: vector field attention.

Paper: Y. Liu et al., "Vector Field Attention for Deformable Image Registration", J. Med. Imaging 11(6), 2024, arXiv
2407.10209. Repository: yihao6/vfa (GPL-3.0, read for facts alone). Official weights: :mod:`common.weights.vfa`.

On purpose different from the published code: displacements instead of sampling grids, which are the same numbers; any
image size (padded inside); keys are not unfolded; activations are made again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.memory_format import channels_last
from common.blocks.remade import Remade, not_stored
from common.blocks.siamese_unet import UNet
from common.blocks.vector_field_attention import VectorFieldAttention
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padded, wants
from common.spatial import resize_ddf, warp

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lumir": {},
    "oasis": {},
    "tiny": {"downsamples": 2, "start_channels": 2, "matching_channels": 2, "max_channels": 4},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class VFA(nn.Module):
    """A siamese U-Net, and attention among neighbouring voxels on each of its levels.

    From the coarsest level to the finest: warp the moving features by what is known, find the neighbour that fits
    best, compose. The default is the published network.

    Args:
        spatial_dims: 2 or 3.
        downsamples: levels below full resolution.
        start_channels: channels of the first convolution; they double from level to level.
        matching_channels: channels that voxels are compared in, on the finest level; they double likewise.
        max_channels: of any layer.
        int_steps: squarings of each level's displacement.
        skip: whether the finest level only enlarges what is known.
        initial_beta: what the learned factor of all displacements starts from.

    Raises:
        InputError: for another number of dimensions, no level to go down to, or a size below 1.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        downsamples: int = 4,
        start_channels: int = 8,
        matching_channels: int = 8,
        max_channels: int = 64,
        int_steps: int = 0,
        skip: bool = False,
        initial_beta: float = 0.1,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise InputError(f"spatial_dims is {spatial_dims!r}; expected 2 or 3.")
        channels = {"start_channels": start_channels, "matching_channels": matching_channels}
        check_numbers(1, downsamples=downsamples, **channels, max_channels=max_channels)
        check_numbers(0, int_steps=int_steps)
        if not isinstance(initial_beta, (int, float)) or not math.isfinite(initial_beta):
            raise InputError(f"initial_beta is {initial_beta!r}; give a number.")
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "downsamples": downsamples,
            "start_channels": start_channels,
            "matching_channels": matching_channels,
            "max_channels": max_channels,
            "int_steps": int_steps,
            "skip": skip,
            "initial_beta": initial_beta,
        }
        self.spatial_dims, self.int_steps, self.skip = spatial_dims, int_steps, skip
        self.levels = downsamples + 1
        self.encoder = UNet(spatial_dims, downsamples, start_channels, max_channels)
        self.beta = nn.Parameter(torch.full((1,), float(initial_beta)))
        self.attention = nn.ModuleList(
            VectorFieldAttention(spatial_dims, features, min(max_channels, matching_channels * 2**level))
            for level, features in enumerate(self.encoder.channels)
        )
        channels_last(self, spatial_dims)

    @overload
    def forward(self, image: Tensor, details: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(self, image: Tensor, details: Literal[True] | Collection[str]) -> dict[str, Any]: ...

    def forward(self, image: Tensor, details: Details = False) -> Tensor | dict[str, Any]:
        """Register a pair.

        Args:
            image: (B, 2, *spatial), channel 0 moving, channel 1 fixed, any spatial size. Intensities of any scale.
            details: further outputs that are wanted, by name, or True for all.

        Returns:
            The ``ddf`` (B, d, *spatial), float32 voxels; with ``details`` a dict of it and, where asked for,
            ``pyramid``: the displacement of each level, finest first, in voxels of its grid. Level 0 covers the image
            padded at the far ends to the working size of the network.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, _padding(size, 2 ** (self.levels - 1)))
        moving, fixed = (self.encoder(image[:, c : c + 1]) for c in (0, 1))
        displacements = self._coarse_to_fine(moving, fixed)
        ddf = crop(displacements[0], size)
        if not details:
            return ddf
        return {"ddf": ddf, **({"pyramid": displacements} if wants(details, "pyramid") else {})}

    def _coarse_to_fine(self, moving: list[Remade], fixed: list[Remade]) -> list[Tensor]:
        """Displacements of all levels, finest first; features are taken out of the lists as they are used."""
        displacements: list[Tensor] = []
        known: Tensor | None = None
        for level in reversed(range(self.levels)):
            m, f = moving.pop(), fixed.pop()
            if known is not None:
                known = resize_ddf(known, f.value.shape[2:])
            if level or not self.skip:
                found = self._found(level, m, f, known)
                known = found if known is None else _follow(known, found)
            assert known is not None
            displacements.insert(0, known)
        return displacements

    def _found(self, level: int, moving: Remade, fixed: Remade, known: Tensor | None) -> Tensor:
        """What the attention of one level finds, at most ``beta`` voxels of it."""
        with not_stored(moving, fixed):
            warped = moving.value if known is None else warp(moving.value, known).to(moving.value.dtype)
            found = self.attention[level](fixed.value, warped)
        found = found * (self.beta / 2**self.int_steps)
        for _ in range(self.int_steps):
            found = _follow(found, found)
        return found


def _follow(outer: Tensor, inner: Tensor) -> Tensor:
    """Composition of two displacements whose points do not leave the grid: ``outer`` begins where ``inner`` ends.

    The published code samples grids of coordinates, whose border value holds outside. Points that ``inner`` moves out
    of the image are thereby moved to its border first.
    """
    inner = _kept_inside(inner)
    return inner + warp(outer, inner)


def _kept_inside(ddf: Tensor) -> Tensor:
    """The displacement (B, d, *spatial), cut off where ``x + ddf(x)`` would leave the grid."""
    shape = ddf.shape[2:]
    parts = []
    for k, n in enumerate(shape):
        below = -torch.arange(n, device=ddf.device, dtype=ddf.dtype).view(
            [-1 if j == k else 1 for j in range(len(shape))]
        )
        parts.append(ddf[:, k].clamp(below, below + (n - 1)))
    return torch.stack(parts, dim=1)


def _padding(size: Sequence[int], unit: int) -> list[int]:
    """Zeros at the far end of each axis: a multiple of ``unit``, and at least two voxels on the coarsest level."""
    missing = [padded(n, unit) - n for n in size]
    return [amount for n in reversed(missing) for amount in (0, n)]

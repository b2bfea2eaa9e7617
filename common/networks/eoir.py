# SPDX-License-Identifier: Apache-2.0
"""EOIR: encoder-only image registration.

Paper: X. Chen et al., "Encoder-only image registration", arXiv 2509.00451; LUMIR report arXiv 2409.00917.
Repository: XiangChen1994/EOIR (MIT). Official weights: :mod:`common.weights.eoir`.

On purpose different from the published code: one class for the three published networks, chosen by an explicit
variant; any image size (padded inside); two dimensions; identity grids are not part of the state dict.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.eoir import Encoder, FlowEstimator, PlainBlock, block
from common.blocks.memory_format import channels_last
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padded, wants
from common.spatial import compose, integrate, resize_image, warp

LEVELS = 5

Variant = Literal["plain", "acdc", "oasis"]
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lumir": {"variant": "plain"},
    "abdomenct": {"variant": "plain"},
    "acdc": {"variant": "acdc"},
    "oasis": {"variant": "oasis", "int_steps": 0},
    "tiny": {"start_channel": 2},
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""


class EOIR(nn.Module):
    """A siamese full-resolution encoder, a feature pyramid, and a flow estimator on each of its levels.

    From the coarsest level to the finest: warp the moving features by what is known, estimate a velocity, integrate
    it, compose. The default is the network whose LUMIR weights are published.

    Args:
        spatial_dims: 2 or 3.
        variant: "plain" (LUMIR, abdomen CT): five levels from full resolution down to 1/16. "acdc": the same, but the
            last axis (few, thick slices) is never resampled; its displacement still doubles from level to level, as in
            the published network. "oasis": large-kernel blocks and four levels from 1/2 to 1/16.
        start_channel: N, channels of the features.
        int_steps: squarings of scaling and squaring on each level; 0 takes the estimates as displacements. The
            published OASIS network does not integrate (0), the others do (7).
        kernel_size: large kernel of the "oasis" variant (5 or 7; 3 makes its blocks plain).
        search_radius: r; each estimator has (2 r + 1) ** 3 hidden channels.

    Raises:
        InputError: for an unknown variant or number of dimensions, or a size below 1.
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        variant: Variant = "plain",
        start_channel: int = 32,
        int_steps: int = 7,
        kernel_size: int = 5,
        search_radius: int = 1,
    ) -> None:
        super().__init__()
        if variant not in ("plain", "acdc", "oasis"):
            raise InputError(f"variant is {variant!r}; expected 'plain', 'acdc' or 'oasis'.")
        if spatial_dims not in (2, 3) or (variant == "acdc" and spatial_dims == 2):
            raise InputError(
                f"spatial_dims is {spatial_dims!r}; expected 2 or 3, and 3 for the 'acdc' variant (the 'plain' one, "
                "--network_def#variant plain, has both)."
            )
        check_numbers(1, start_channel=start_channel, kernel_size=kernel_size)
        check_numbers(0, int_steps=int_steps, search_radius=search_radius)
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "variant": variant,
            "start_channel": start_channel,
            "int_steps": int_steps,
            "kernel_size": kernel_size,
            "search_radius": search_radius,
        }
        self.spatial_dims = spatial_dims
        self.int_steps = int_steps
        # The first feature level of "oasis" lies at half resolution, so it has one level less.
        self.first_level = 1 if variant == "oasis" else 0
        self.levels = LEVELS - self.first_level
        self.resampled_axes = 2 if variant == "acdc" else spatial_dims
        large = kernel_size if variant == "oasis" else None
        n = start_channel
        layers: list[nn.Module] = [PlainBlock(spatial_dims, 1, n), PlainBlock(spatial_dims, n, 2 * n)]
        if large is not None:
            layers.append(block(spatial_dims, 2 * n, 2 * n, large))
        self.encoder = Encoder(*layers, PlainBlock(spatial_dims, 2 * n, n))
        self.estimators = nn.ModuleList(
            FlowEstimator(spatial_dims, n, search_radius, large) for _ in range(self.levels)
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

            - ``pyramid``: the displacement of each level, finest first, in voxels of its grid. Level 0 covers the
              image padded at the far ends to the working size of the network;
            - ``velocity``: what each level estimated, before integration, finest first. In the "oasis" variant it
              lives on half the resolution of the displacement.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, _padding(size, self.resampled_axes))
        # One image after the other: the same numbers as a joint batch, at half the transient memory.
        moving, fixed = (self._features(image[:, c : c + 1]) for c in (0, 1))
        displacements, velocities = self._coarse_to_fine(moving, fixed)
        ddf = crop(displacements[0], size)
        if not details:
            return ddf
        outputs = {"pyramid": displacements, "velocity": velocities}
        return {"ddf": ddf, **{name: output for name, output in outputs.items() if wants(details, name)}}

    def _features(self, image: Tensor) -> list[Tensor]:
        """Feature pyramid of one image (B, 1, *spatial), finest first."""
        features = self.encoder(image)
        levels = []
        for level in range(LEVELS):
            if level:
                features = resize_image(features, self._halved(features.shape[2:]))
            levels.append(features)
        return levels[self.first_level :]

    def _halved(self, size: Sequence[int]) -> list[int]:
        return [n // 2 if axis < self.resampled_axes else n for axis, n in enumerate(size)]

    def _doubled(self, ddf: Tensor) -> Tensor:
        size = [2 * n if axis < self.resampled_axes else n for axis, n in enumerate(ddf.shape[2:])]
        return 2 * resize_image(ddf, size)

    def _coarse_to_fine(self, moving: list[Tensor], fixed: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        displacements: list[Tensor] = []
        velocities: list[Tensor] = []
        known: Tensor | None = None
        for level in reversed(range(len(moving))):
            # Taken out of the lists, so that features are freed as soon as they are in the pair.
            velocity = self.estimators[level](_pair(moving.pop(), fixed.pop(), known))
            ddf = integrate(velocity, self.int_steps)
            if known is not None:
                ddf = compose(known, ddf, padding_mode="zeros")
            if level or self.first_level:
                known = self._doubled(ddf)
            velocities.insert(0, velocity)
            displacements.insert(0, known if self.first_level and known is not None else ddf)
        return displacements, velocities


def _pair(moving: Tensor, fixed: Tensor, known: Tensor | None) -> Tensor:
    """Features of the fixed image, then those of the moving one, warped by what is ``known``: (B, 2 N, *spatial)."""
    if known is not None:
        moving = warp(moving, known, padding_mode="zeros").to(moving.dtype)
    return torch.cat([fixed, moving], dim=1)


def _padding(size: Sequence[int], resampled_axes: int) -> list[int]:
    """Zeros at the far end of each resampled axis: a multiple of 16, and at least two voxels on the coarsest level."""
    unit = 2 ** (LEVELS - 1)
    missing = [padded(n, unit) - n if axis < resampled_axes else 0 for axis, n in enumerate(size)]
    return [amount for n in reversed(missing) for amount in (0, n)]

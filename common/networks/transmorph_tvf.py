# SPDX-License-Identifier: Apache-2.0
"""TransMorphTVF: TransMorph whose field grows in time steps, each of which sees what those before it have left.

Paper: J. Chen, E. Frey, Y. Du, "Unsupervised learning of diffeomorphic image registration via TransMorph", WBIR 2022.
Repositories: junyuchen245/TransMorph_TVF (MIT), JHU-MedImage-Reg/LUMIR_L2R (facts only). Official weights:
:mod:`common.weights.transmorph_tvf`.

On purpose different from the published code: images of LUMIR's network are halved and their fields doubled inside; any
image size (padded inside); the displacement says where the published warp samples (:mod:`common.spatial.outer_edges`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.memory_format import channels_last
from common.blocks.remade import Remade
from common.blocks.skip_decoder import Norm, doubled, enlarged
from common.blocks.swin_unet import Fine, SwinUNet, halved
from common.blocks.time_step import TimeStep
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
from common.networks.transmorph import check_encoder
from common.spatial import warp
from common.spatial.outer_edges import integrate_at_edges, sampled_at_edges

Variant = Literal["oasis", "lumir"]
_LARGE: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 12, 2), "heads": (4, 4, 8, 16)}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "oasis": {**_LARGE, "time_steps": 12},
    "oasis_8_steps": _LARGE,
    "base": {},
    "base_12_steps": {"time_steps": 12},
    "lumir": {"variant": "lumir", "depths": (4, 4, 5), "heads": (8, 8, 8), "window": (2, 3, 3), "time_steps": 7},
    "tiny": {
        "embed_dim": 4,
        "depths": (1, 2),
        "heads": (1, 2),
        "window": (2, 3, 2),
        "head_channels": 4,
        "time_steps": 2,
    },
}
"""Arguments of the published networks, and those that make any of them small enough for tests."""
_MOST = 100.0
"""Voxels that an integrated field is cut off at."""


class TransMorphTVF(nn.Module):
    """A Swin encoder and a decoder, whose features and the halved images each time step makes a velocity of.

    A velocity, followed by itself for one step, is added to the field; the next step sees the moving image as the field
    so far warps it. The variants differ in what the encoder sees (``"oasis"`` the images, ``"lumir"`` the halved ones),
    in how the steps normalise what they see of the images (instances; batches) and in the voxels that the field of half
    the resolution is in (of the images; of the halved images).

    Args:
        spatial_dims: 2 or 3.
        variant: ``"oasis"`` or ``"lumir"``.
        embed_dim: channels of the finest tokens, even; they double from stage to stage.
        depths: blocks of each stage, two stages or more.
        heads: of the attention, of each stage.
        window: of the attention, in tokens along each axis; the first ``spatial_dims`` count.
        head_channels: that a step's last convolution makes a velocity of.
        time_steps: 1 or more.
        int_steps: squarings of the field of all steps, which then counts as a stationary velocity; 0 for none.
        drop_path: probability that a sample skips a branch of the encoder's last block in training.

    Raises:
        InputError: for another number of dimensions or variant, lists that do not fit each other, or numbers too small.
    """

    levels = 1

    def __init__(
        self,
        spatial_dims: int = 3,
        *,
        variant: Variant = "oasis",
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        window: Sequence[int] = (5, 6, 7),
        head_channels: int = 16,
        time_steps: int = 8,
        int_steps: int = 0,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise InputError(f"variant is {variant!r}; choose one of {', '.join(get_args(Variant))}.")
        check_encoder(spatial_dims, embed_dim, depths, heads, window, drop_path)
        check_numbers(1, head_channels=head_channels, time_steps=time_steps)
        check_numbers(0, int_steps=int_steps)
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "variant": variant,
            "embed_dim": embed_dim,
            "depths": [*depths],
            "heads": [*heads],
            "window": [*window],
            "head_channels": head_channels,
            "time_steps": time_steps,
            "int_steps": int_steps,
            "drop_path": drop_path,
        }
        self.spatial_dims, self.int_steps, self.halves = spatial_dims, int_steps, variant == "lumir"
        skip = embed_dim // 2
        norm: Norm = "batch" if self.halves else "instance"
        self.unet = SwinUNet(
            spatial_dims,
            embed_dim=embed_dim,
            depths=depths,
            heads=heads,
            window=window,
            fine=[Fine(skip, skip)] if self.halves else [],
            drop_path=drop_path,
            norm=norm,
        )
        features = skip if self.halves else embed_dim
        self.steps = nn.ModuleList(
            TimeStep(spatial_dims, features, skip, head_channels, norm) for _ in range(time_steps)
        )
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
            the field that is published, of the same form, of which the ``ddf`` is where it is sampled.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        image = F.pad(image, padding(size, self.unet.unit * (2 if self.halves else 1)))
        flow = doubled(self._flow(image)) * (2 if self.halves else 1)
        ddf = crop(sampled_at_edges(flow), size)
        if not details:
            return ddf
        return {"ddf": ddf, **({"flow": crop(flow, size)} if wants(details, "flow") else {})}

    def _flow(self, image: Tensor) -> Tensor:
        """The field on half the grid of the images, float32, as published."""
        half = self._half(image)
        # Enlarged once, for all steps.
        features = enlarged(self.unet(half if self.halves else image))
        flow = self._through_time(features, half)
        return integrate_at_edges(flow, self.int_steps).clamp(-_MOST, _MOST) if self.int_steps else flow

    def _half(self, image: Tensor) -> Tensor:
        """What the steps see, on half as many voxels along each axis."""
        if not self.halves:
            return halved(image)
        pool = F.avg_pool2d if self.spatial_dims == 2 else F.avg_pool3d
        return pool(image, 2)

    def _through_time(self, features: Remade, pair: Tensor) -> Tensor:
        """The field of all steps on the grid of the pair (B, 2, *half)."""
        moving, fixed = pair[:, :1], pair[:, 1:]
        moved, flow = moving, None
        for step in self.steps:
            if flow is not None:
                moved = warp(moving, sampled_at_edges(flow), padding_mode="zeros").to(pair.dtype)
            velocity = step(features, torch.cat([moved, fixed], dim=1))
            followed = warp(velocity, sampled_at_edges(velocity), padding_mode="zeros")
            flow = followed if flow is None else flow + followed
        assert flow is not None
        return flow

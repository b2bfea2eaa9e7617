# SPDX-License-Identifier: Apache-2.0
"""TransMorph-bspl: the U-Net of TransMorph gives control points of a velocity, which is integrated.

Papers: J. Chen et al., "TransMorph", Medical Image Analysis 82 (2022) 102615; H. Qiu et al., "Learning diffeomorphic
and modality-invariant registration using B-splines" (MIDIR), MIDL 2021. Repository:
junyuchen245/TransMorph_Transformer_for_Medical_Image_Registration (MIT). Official weights:
:mod:`common.weights.transmorph_bspline`.

On purpose different from the published code: any image size (padded inside), which the published class has as a
constant; the displacement says where the published warp samples (:mod:`common.spatial.outer_edges`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.memory_format import channels_last
from common.blocks.remade import stored
from common.blocks.swin_unet import FieldHead, Fine, SwinUNet
from common.checks import InputError
from common.networks.contract import Details, check_numbers, check_pair, crop, padding, wants
from common.networks.transmorph import check_encoder
from common.spatial.free_form import free_form_field, lattice_size
from common.spatial.outer_edges import integrate_at_edges, sampled_at_edges
from common.spatial.resize import LINEAR

SLOPE = 0.2
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ixi": {},
    "tiny": {"embed_dim": 4, "depths": (1, 2), "heads": (1, 2), "window": (2, 3, 2), "lattice_channels": (4,)},
}
"""Arguments of the published network, and those that make it small enough for tests."""


class TransMorphBSpline(nn.Module):
    """Features on half the grid of the images, interpolated at a lattice, where convolutions make a velocity of them.

    Args:
        spatial_dims: 2 or 3.
        embed_dim: channels on the grid of a quarter; they double from grid to grid.
        depths: blocks of each stage of the encoder.
        heads: of the attention of each stage.
        window: of the attention, tokens along each axis; in two dimensions the first two count.
        spacing: of the control points, in voxels.
        lattice_channels: of the convolutions on the lattice, one or more.
        int_steps: squarings of the velocity.
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
        spacing: int = 3,
        lattice_channels: Sequence[int] = (32, 32),
        int_steps: int = 7,
        drop_path: float = 0.3,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims,
            "embed_dim": embed_dim,
            "depths": [*depths],
            "heads": [*heads],
            "window": [*window],
            "spacing": spacing,
            "lattice_channels": [*lattice_channels],
            "int_steps": int_steps,
            "drop_path": drop_path,
        }
        check_encoder(spatial_dims, embed_dim, depths, heads, window, drop_path)
        check_numbers(1, spacing=spacing, **{f"lattice_channels[{i}]": n for i, n in enumerate(lattice_channels)})
        check_numbers(0, int_steps=int_steps)
        if not lattice_channels:
            raise InputError(f"lattice_channels is {lattice_channels}; give one number of channels or more.")
        self.spatial_dims, self.spacing, self.int_steps = spatial_dims, spacing, int_steps
        features = embed_dim // 2
        self.unet = SwinUNet(
            spatial_dims,
            embed_dim=embed_dim,
            depths=depths,
            heads=heads,
            window=window,
            fine=[Fine(features, features)],
            drop_path=drop_path,
        )
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        channels = [features, *lattice_channels]
        self.on_lattice = nn.ModuleList(kind(*pair, 3, padding=1) for pair in pairwise(channels))
        self.control = FieldHead(spatial_dims, channels[-1])
        nn.init.kaiming_uniform_(self.control.conv.weight)
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

            - ``velocity``: (B, d, *spatial), the spline, which the published penalty looks at;
            - ``flow``: the displacement as the published network gives it, of which ``ddf`` is where it samples.

        Raises:
            ValueError: when ``image`` has not two channels or not ``spatial_dims`` spatial axes.
        """
        check_pair(image, self.spatial_dims)
        size = image.shape[2:]
        velocity = self._velocity(F.pad(image, padding(size, self.unet.unit)))
        flow = integrate_at_edges(velocity, self.int_steps, stretched=False)
        ddf = crop(sampled_at_edges(flow, stretched=False), size)
        if not details:
            return ddf
        outputs = {"velocity": velocity, "flow": flow}
        return {"ddf": ddf, **{name: crop(field, size) for name, field in outputs.items() if wants(details, name)}}

    def _velocity(self, image: Tensor) -> Tensor:
        """The spline on the grid of the images, float32."""
        x = self.unet(image).value
        size = image.shape[2:]
        x = F.interpolate(x, size=lattice_size(size, self.spacing), mode=LINEAR[self.spatial_dims])
        for convolution in self.on_lattice:
            x = F.leaky_relu(convolution(x), SLOPE)
        return free_form_field(self.control(stored(x)), size, self.spacing)

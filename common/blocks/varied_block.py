# SPDX-License-Identifier: Apache-2.0
"""The residual blocks that the dual-pyramid code can be told to use instead of the published one.

Source: the registry of HengjieLiu/Unsupervised-DL-DIR-Revisited; there are no results of these. They are made of
torch's own parts, under the names that the blocks have there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.blocks.remade import Remade
from common.checks import InputError

ACTIVATIONS = ("leaky_relu", "relu", "prelu")
OPTIONS = ("convolutions", "skip", "groups", "activation", "slope", "pooled", "separable")


class VariedBlock(nn.Module):
    """Convolutions of three voxels beside one of a single voxel or none, their sum activated.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution and of the one beside it.
        convolutions: how many follow one another, each normalised, all but the last activated.
        skip: whether there is the convolution beside them.
        groups: of the normalisation; None for one of each channel.
        activation: one of :data:`ACTIVATIONS`.
        slope: of the leaky one at negative numbers.
        pooled: whether instead of a stride the input is pooled to the largest of each 2 voxels along each axis.
        separable: whether each convolution is one of each channel, followed by one of a single voxel.

    Raises:
        InputError: for another activation, no convolution, or groups that do not divide the channels.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        convolutions: int = 2,
        skip: bool = True,
        groups: int | None = None,
        activation: str = "leaky_relu",
        slope: float = 0.2,
        pooled: bool = False,
        separable: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS or convolutions < 1 or (groups and out_channels % groups):
            raise InputError(
                f"A block of {out_channels} channels has {convolutions} convolutions, {groups} groups and activation "
                f"{activation!r}; give one convolution or more, groups that divide the channels, one of {ACTIVATIONS}."
            )
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.spatial_dims, self.groups, self.activation, self.slope = spatial_dims, groups, activation, slope
        self.pool: nn.Module | None = None
        if pooled and stride > 1:
            self.pool, stride = (nn.MaxPool2d if spatial_dims == 2 else nn.MaxPool3d)(stride), 1

        def convolution(i: int) -> nn.Module:
            n, step = (out_channels, 1) if i else (in_channels, stride)
            if not separable:
                return conv(n, out_channels, 3, stride=step, padding=1)
            return nn.Sequential(conv(n, n, 3, stride=step, padding=1, groups=n), conv(n, out_channels, 1))

        self.main_branch = nn.Sequential(
            *(
                nn.Sequential(convolution(i), self._norm(out_channels), *([self._activation()] if later else []))
                for i, later in enumerate(reversed(range(convolutions)))
            )
        )
        self.post_activation = self._activation()
        self.skip_conv = conv(in_channels, out_channels, 1, stride=stride) if skip else None
        self.skip_norm = self._norm(out_channels) if skip else None

    def _norm(self, channels: int) -> nn.Module:
        return nn.GroupNorm(self.groups or channels, channels)

    def _activation(self) -> nn.Module:
        if self.activation == "prelu":
            return nn.PReLU()
        return nn.LeakyReLU(self.slope if self.activation == "leaky_relu" else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial / stride), rounded up, or down where pooled."""
        if self.pool is not None:
            x = self.pool(x)
        main = self.main_branch(x)
        if self.skip_conv is not None and self.skip_norm is not None:
            main = main + self.skip_norm(self.skip_conv(x))
        result: Tensor = self.post_activation(main)
        return result

    def remade(self, x: Tensor) -> Remade:
        """The same. It is stored, and not made again."""
        value = self(x)
        stored = value.detach()
        return Remade(value, lambda: stored)

    def of_exchanged(self, one: Remade, other: Remade) -> tuple[Remade, Remade]:
        """The results of channels [one, other] and [other, one]."""
        halves = one.value, other.value
        return self.remade(torch.cat(halves, dim=1)), self.remade(torch.cat(halves[::-1], dim=1))

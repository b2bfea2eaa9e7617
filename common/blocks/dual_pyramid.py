# SPDX-License-Identifier: Apache-2.0
"""The parts of the dual-pyramid networks: residual block, encoder, flow block, and what can be fed to it.

Source: Liu et al., "Unsupervised deformable image registration revisited" (MIDL 2025 short papers); where the text is
silent these follow the published code, its initialisation included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.blocks.affine_norm import AffineNorm
from common.blocks.convolution import convolve
from common.blocks.correlation import local_correlation, reversed_correlation
from common.blocks.correlation_lines import PaddingMode
from common.blocks.remade import Remade, made_of, not_stored
from common.blocks.room import make_room
from common.blocks.sitreg import computed_again
from common.blocks.varied_block import VariedBlock

SLOPE = 0.2
"""Of the activations at negative numbers."""
SMALL = 1e-5
"""Standard deviation of the weights of a fresh convolution that predicts a displacement."""
EXCHANGED = {
    "moving": "fixed",
    "fixed": "moving",
    "correlation": "correlation_back",
    "correlation_back": "correlation",
    "difference": "difference_back",
    "difference_back": "difference",
    "sum": "sum",
}
"""What can be fed, and what each becomes when the images are exchanged."""


def _convolution(spatial_dims: int, in_channels: int, out_channels: int, size: int = 3, stride: int = 1) -> nn.Module:
    kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, size, stride=stride, padding=size // 2)


def _convolved(x: Tensor, conv: nn.Module) -> Tensor:
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d)) and conv.bias is not None
    if max(conv.stride) > 1:
        result: Tensor = conv(x)
        return result
    return convolve(x, conv.weight, conv.bias)


def _both_convolved(total: Tensor, difference: Tensor, conv: nn.Module) -> tuple[Tensor, Tensor]:
    """The convolution of channels [x, y] and of [y, x], given x + y and x - y."""
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d)) and conv.bias is not None
    one, other = conv.weight.chunk(2, dim=1)
    even = convolve(total, 0.5 * (one + other), conv.bias)
    odd = convolve(difference, 0.5 * (one - other), torch.zeros_like(conv.bias))
    return even + odd, even - odd


class ResidualBlock(nn.Module):
    """Two convolutions of three voxels beside one of a single voxel, their sum activated.

    Each convolution is followed by a normalisation, and the first one by an activation as well.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution and of the one beside it.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _convolution(spatial_dims, in_channels, out_channels, stride=stride)
        self.first_norm = AffineNorm(out_channels, SLOPE)
        self.second = _convolution(spatial_dims, out_channels, out_channels)
        self.second_norm = AffineNorm(out_channels, slope=1.0)
        self.skip = _convolution(spatial_dims, in_channels, out_channels, 1, stride)
        self.skip_norm = AffineNorm(out_channels, slope=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *(ceil(n / stride) for n in spatial))."""
        return F.leaky_relu_(self._sum(_convolved(x, self.first), _convolved(x, self.skip)).value, SLOPE)

    def remade(self, x: Tensor) -> Remade:
        """The same, made again of what is stored of the block: for results that nobody else holds on to."""
        return _activated(self._sum(_convolved(x, self.first), _convolved(x, self.skip)))

    def of_exchanged(self, one: Remade, other: Remade) -> tuple[Remade, Remade]:
        """The results of channels [one, other] and [other, one].

        Convolutions are linear: those of the input are made once of sum and difference, and added and subtracted.
        """
        again = one.again, other.again
        total = Remade(one.value + other.value, lambda: again[0]() + again[1]())
        difference = Remade(one.value - other.value, lambda: again[0]() - again[1]())
        with not_stored(total, difference):
            (first, first_back), (skip, skip_back) = (
                _both_convolved(total.value, difference.value, conv) for conv in (self.first, self.skip)
            )
        del total, difference
        return _activated(self._sum(first, skip)), _activated(self._sum(first_back, skip_back))

    def _sum(self, first: Tensor, skip: Tensor) -> Remade:
        """What follows the convolutions of the input, but for the last activation."""
        hidden = self.first_norm(first)
        with not_stored(hidden):
            main = _convolved(hidden.value, self.second)
        # Here a training step has most alive: what is not needed any more goes first.
        del hidden
        normal, beside = self.second_norm(main), self.skip_norm(skip)
        again = normal.again, beside.again
        if beside.value.requires_grad and not normal.value.requires_grad:
            # What has no gradient is made again by being kept, and must stay as it is.
            return Remade(normal.value + beside.value, lambda: again[0]() + again[1]())
        return Remade(normal.value.add_(beside.value), lambda: again[0]().add_(again[1]()))


def _activated(total: Remade) -> Remade:
    """The activation of a sum, in its place."""
    again = total.again
    activated = Remade(total.value, lambda: F.leaky_relu_(again(), SLOPE))
    with not_stored(activated):
        return activated._replace(value=F.leaky_relu_(total.value, SLOPE))


def _block(
    spatial_dims: int, in_channels: int, out_channels: int, stride: int, options: Mapping[str, Any] | None
) -> ResidualBlock | VariedBlock:
    if options is None:
        return ResidualBlock(spatial_dims, in_channels, out_channels, stride)
    return VariedBlock(spatial_dims, in_channels, out_channels, stride, **options)


class Encoder(nn.Module):
    """Feature pyramid of one image, a residual block for each level.

    Args:
        spatial_dims: 2 or 3.
        channels: of each level, finest first.
        block: options of :class:`common.blocks.varied_block.VariedBlock` instead of the published block; None for that.
    """

    def __init__(self, spatial_dims: int, channels: Sequence[int], block: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.projection = _convolution(spatial_dims, 1, channels[0], 1)
        inputs = [channels[0], *channels[:-1]]
        self.blocks = nn.ModuleList(
            _block(spatial_dims, inputs[level], channels[level], 2 if level else 1, block)
            for level in range(len(channels))
        )
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, *spatial) to the features (B, C_i, *spatial / 2**i) of each level, finest first, sizes rounded up."""
        features: list[Tensor] = []
        features.append(computed_again(self._finest, image))
        for block in self.blocks[1:]:
            features.append(block(features[-1]))
        return features

    def _finest(self, image: Tensor) -> Tensor:
        # Also where the backward pass computes this again.
        make_room(image)
        result: Tensor = self.blocks[0](_convolved(image, self.projection))
        return result


class FlowBlock(nn.Module):
    """From features to a displacement of one level: a residual block, and a convolution that begins near zero.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of all that is fed.
        channels: of the residual block.
        block: as of the encoder.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: int, block: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.residual = _block(spatial_dims, in_channels, channels, 1, block)
        self.flow = _convolution(spatial_dims, channels, spatial_dims)
        assert isinstance(self.flow, (nn.Conv2d, nn.Conv3d)) and self.flow.bias is not None
        nn.init.normal_(self.flow.weight, std=SMALL)
        nn.init.zeros_(self.flow.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, d, *spatial), float32 or finer."""
        return self._flow(self.residual.remade(x))

    def of_exchanged(self, one: Remade, other: Remade) -> tuple[Tensor, Tensor]:
        """Those of channels [one, other] and of [other, one]."""
        first, second = self.residual.of_exchanged(one, other)
        return self._flow(first), self._flow(second)

    def _flow(self, hidden: Remade) -> Tensor:
        with not_stored(hidden):
            flow = _convolved(hidden.value, self.flow)
        return flow.float() if flow.dtype.itemsize < 4 else flow


def features_to_feed(
    names: Sequence[str], moving: Tensor, fixed: Tensor, window: tuple[int, PaddingMode]
) -> dict[str, Remade]:
    """What can be fed of the features of one level, by name.

    Args:
        names: what is asked for, of :data:`EXCHANGED`.
        moving: (B, C, *spatial).
        fixed: the same shape.
        window: radius and padding mode of the correlation.

    Returns:
        ``moving`` and ``fixed`` themselves, and where asked for

        - ``correlation``: of each voxel of the fixed features with the moving ones around it,
        - ``correlation_back``: the other way round, of the same products,
        - ``difference``: moving less fixed, ``difference_back``, and ``sum``.
    """
    made = {"moving": Remade(moving, moving.detach), "fixed": Remade(fixed, fixed.detach)}
    if any(name.startswith("correlation") for name in names):
        made["correlation"] = made_of(lambda f, m: local_correlation(f, m, *window), fixed, moving)
    if "correlation_back" in names:
        there = made["correlation"]
        made["correlation_back"] = Remade(
            reversed_correlation(there.value, *window), lambda: reversed_correlation(there.again(), *window)
        )
    if "difference" in names:
        made["difference"] = made_of(torch.sub, moving, fixed)
        made |= {"difference_back": made_of(torch.sub, fixed, moving), "sum": made_of(torch.add, moving, fixed)}
    return made


def joined(parts: Sequence[Remade]) -> Remade:
    """The channels of all parts."""
    if len(parts) == 1:
        return parts[0]
    again = [part.again for part in parts]
    return Remade(torch.cat([part.value for part in parts], 1), lambda: torch.cat([make() for make in again], 1))

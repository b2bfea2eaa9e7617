# SPDX-License-Identifier: Apache-2.0
"""The parts that SITReg is built of: block of convolutions, feature extractor, extraction of an update, affine stage.

Source: Honkamaa and Marttinen, "SITReg", MELBA 2024:026 (arXiv 2303.10211); where the text is silent these follow the
published weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.blocks.convolution import convolve
from common.blocks.eoir import convolution
from common.blocks.group_normalisation import group_norm_relu, group_norm_relu_and_convolve
from common.tracing import is_traced, without_autocast


def computed_again(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """The value of a function of which nothing but the inputs is stored for the backward pass.

    For the finest level, whose few channels take the most memory and little of the time.
    """
    if not torch.is_grad_enabled() or is_traced():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


class ConvBlock(nn.Module):
    """Some times convolution, group normalisation, ReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        convolutions: how many.
        groups: of the normalisation; None for none.
        rectify_first: ReLU before the normalisation, as in the revision of 2023.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        convolutions: int,
        groups: int | None,
        rectify_first: bool = False,
    ) -> None:
        super().__init__()
        channels = [in_channels, *[out_channels] * convolutions]
        self.convolutions = nn.ModuleList(
            convolution(spatial_dims, channels[i], channels[i + 1]) for i in range(convolutions)
        )
        self.normalisations = nn.ModuleList(
            nn.GroupNorm(groups, out_channels) for _ in range(convolutions) if groups is not None
        )
        self.rectify_first = rectify_first

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        return self.after_first(_convolved(x, self.convolutions[0]))

    def after_first(self, x: Tensor) -> Tensor:
        """What follows the first convolution; may overwrite ``x``."""
        return self._activated(self._before_last(x), len(self.convolutions) - 1)

    def after_first_and_head(self, x: Tensor, head: nn.Module) -> Tensor:
        """The same and one more convolution, whose input is not stored; may overwrite ``x``."""
        return self._activated_and_convolved(self._before_last(x), len(self.convolutions) - 1, head)

    def _before_last(self, x: Tensor) -> Tensor:
        """From the first convolution to the last, without the activation of the latter."""
        for i, conv in enumerate(self.convolutions[1:]):
            x = self._activated_and_convolved(x, i, conv)
        return x

    def _activated_and_convolved(self, x: Tensor, i: int, conv: nn.Module) -> Tensor:
        if not self.normalisations or self.rectify_first:
            return _convolved(self._activated(x, i), conv)
        norm = self.normalisations[i]
        assert isinstance(norm, nn.GroupNorm)
        return group_norm_relu_and_convolve(x, norm.num_groups, norm.weight, norm.bias, *_parameters(conv))

    def _activated(self, x: Tensor, i: int) -> Tensor:
        if not self.normalisations:
            return F.relu(x)
        norm = self.normalisations[i]
        assert isinstance(norm, nn.GroupNorm)
        if self.rectify_first:
            # Contiguous, for the reason that group_norm_relu gives.
            return F.group_norm(F.relu(x).contiguous(), norm.num_groups, norm.weight, norm.bias)
        return group_norm_relu(x, norm.num_groups, norm.weight, norm.bias, overwrite=True)


def _parameters(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, (nn.Conv2d, nn.Conv3d)) and conv.bias is not None
    return conv.weight, conv.bias


def _convolved(x: Tensor, conv: nn.Module) -> Tensor:
    return convolve(x, *_parameters(conv))


class Downsampling(nn.Module):
    """From one level to the next: a residual convolution of stride 2 beside a pooled skip, then a block.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the finer level.
        out_channels: channels of the coarser level.
        convolutions: of the block.
        groups: of its normalisation.
        rectify_first: see :class:`ConvBlock`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        convolutions: int,
        groups: int,
        rectify_first: bool,
    ) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.downsampling = kind(in_channels, out_channels, 2, stride=2)
        self.projection = kind(in_channels, out_channels, 1)
        self.block = ConvBlock(spatial_dims, out_channels, out_channels, convolutions, groups, rectify_first)

    def forward(self, features: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, in_channels, *spatial) and the skip, :func:`_halved`, to features and skip of half the size."""
        skip = self.downsampling(_even(features)) + self.projection(pooled)
        return self.block(skip), skip


def _even(x: Tensor) -> Tensor:
    """Zeros at the far end of odd axes."""
    odd = [n % 2 for n in x.shape[2:]]
    # Not without need: padding by nothing is a copy. Images of another size may need what this one does not.
    return F.pad(x, [amount for n in reversed(odd) for amount in (0, n)]) if is_traced() or any(odd) else x


def _halved(x: Tensor) -> Tensor:
    """Means of two voxels along each axis, sizes rounded up."""
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    return pool(_even(x), 2)


class FeatureExtractor(nn.Module):
    """Feature pyramid of an image.

    Args:
        spatial_dims: 2 or 3.
        channels: of each level, finest first.
        convolutions: of the block of each level.
        groups: of the normalisations.
        rectify_first: see :class:`ConvBlock`.
    """

    def __init__(
        self,
        spatial_dims: int,
        channels: Sequence[int],
        convolutions: Sequence[int],
        groups: int,
        rectify_first: bool,
    ) -> None:
        super().__init__()
        first = channels[0]
        self.projection = convolution(spatial_dims, 1, first, 1)
        self.block = ConvBlock(spatial_dims, first, first, convolutions[0], groups, rectify_first)
        self.downsamplings = nn.ModuleList(
            Downsampling(spatial_dims, channels[i], channels[i + 1], convolutions[i + 1], groups, rectify_first)
            for i in range(len(channels) - 1)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 1, *spatial) to the features (B, C_i, *spatial / 2**i) of each level, finest first, sizes rounded up."""
        # The projection of one channel to some costs next to nothing.
        features = [computed_again(lambda x: self.block(self.projection(x)), image)]
        pooled = computed_again(lambda x: _halved(self.projection(x)), image)
        for downsampling in self.downsamplings:
            coarser, skip = downsampling(features[-1], pooled)
            features.append(coarser)
            pooled = _halved(skip)
        return features


class UpdateExtraction(nn.Module):
    """From the features of both images at one level to control points of the update of each half.

    The published input is [z1 - z2, z1 + z2] for one half and [z2 - z1, z1 + z2] for the other, with the same weights.
    The first convolution is linear, so that its parts for difference and sum are computed once and added or
    subtracted: the same numbers from half the products.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the features of one image.
        channels: of the block.
        convolutions: of the block.
        groups: of its normalisation; None for none.
        finest: whether nothing is stored for the backward pass, see :func:`computed_again`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        convolutions: int,
        groups: int | None,
        finest: bool = False,
    ) -> None:
        super().__init__()
        self.finest = finest
        self.block = ConvBlock(spatial_dims, 2 * in_channels, channels, convolutions, groups)
        self.head = convolution(spatial_dims, channels, spatial_dims, 1)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, in_channels, *spatial) of both images to two unbounded fields (B, d, *spatial)."""
        weight, bias = _parameters(self.block.convolutions[0])
        on_difference, on_sum = weight.chunk(2, dim=1)
        odd = convolve(first - second, on_difference, torch.zeros_like(bias))
        even = convolve(first + second, on_sum, bias)
        halves = even + odd, even - odd
        del odd, even
        if self.finest:
            # One after the other, for half of the transient memory.
            return computed_again(self._field, halves[0]), computed_again(self._field, halves[1])
        one, other = self._field(torch.cat(halves)).chunk(2)
        return one, other

    def _field(self, x: Tensor) -> Tensor:
        """Of what the first convolution made; may overwrite it."""
        return self.block.after_first_and_head(x, self.head)


class AffineExtraction(nn.Module):
    """From the coarsest features of both images to an affine map between them.

    The parameters of a map are the logarithms of its scales, shears, rotations and a translation: with S the symmetric
    matrix of scales and shears and W the antisymmetric one of rotations, ``w -> exp(S) exp(W) (w + t)``.

    Args:
        spatial_dims: 2 or 3.
        features: number of values of the coarsest features of one image.
        hidden_layers: 2, one after the other; the published code of today has a second one that it never uses, so that
            its weights have 1.
    """

    def __init__(self, spatial_dims: int, features: int, hidden_layers: int) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.hidden = nn.ModuleList(nn.Linear(2 * features, 2 * features) for _ in range(hidden_layers))
        self.head = nn.Linear(2 * features, spatial_dims * (spatial_dims + 1))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, *spatial) to the map of second to first image and back, (B, d + 1, d + 1), world units."""
        first, second = first.flatten(1), second.flatten(1)
        there, back = (self._map(torch.cat([x, first + second], dim=1)) for x in (first - second, second - first))
        return there @ torch.linalg.inv(back), back @ torch.linalg.inv(there)

    def _map(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = F.relu(layer(x))
        with without_autocast(x):
            return _affine_matrix(self.head(x.to(self.head.weight.dtype)), self.spatial_dims)


def _affine_matrix(parameters: Tensor, dims: int) -> Tensor:
    """(B, d (d + 1)) to (B, d + 1, d + 1)."""
    pairs = dims * (dims - 1) // 2
    scales, shears, rotations, translations = parameters.split([dims, pairs, pairs, dims], dim=1)
    rows, columns = torch.triu_indices(dims, dims, 1, device=parameters.device)
    sheared, rotated = (parameters.new_zeros((len(parameters), dims, dims)) for _ in range(2))
    sheared[:, rows, columns], rotated[:, rows, columns] = shears, rotations
    stretch = torch.diag_embed(scales) + sheared + sheared.mT
    linear = torch.linalg.matrix_exp(stretch) @ torch.linalg.matrix_exp(rotated - rotated.mT)
    matrix = torch.cat([linear, linear @ translations[:, :, None]], dim=2)
    last = parameters.new_zeros((len(parameters), 1, dims + 1))
    last[:, :, -1] = 1
    return torch.cat([matrix, last], dim=1)

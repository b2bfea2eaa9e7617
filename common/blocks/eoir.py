# SPDX-License-Identifier: Apache-2.0
"""The three parts that EOIR is built of: plain block, large-kernel block, flow estimator.

Source: Chen et al., "Encoder-only image registration" (arXiv 2509.00451); where its figures and the published weights
disagree, these follow the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.blocks.convolution import convolve, convolved_again, normalise_and_convolve, rectify_and_convolve
from common.blocks.normalisation import instance_norm_prelu
from common.checks import InputError


def convolution(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d | nn.Conv3d:
    """Convolution of stride 1 with zero padding that keeps the size."""
    kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
    return kind(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def parameters(conv: nn.Conv2d | nn.Conv3d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution that has one."""
    assert conv.bias is not None
    return conv.weight, conv.bias


class PlainBlock(nn.Module):
    """Convolution, instance normalisation, PReLU.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = convolution(spatial_dims, in_channels, out_channels)
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        return instance_norm_prelu([convolve(x, *parameters(self.conv))], self.activation.weight, overwrite=True)


class Encoder(nn.Sequential):
    """Blocks one after the other, the first two plain, for an input without gradient.

    Neither the output of the first convolution nor the activation between two plain blocks is stored for the backward
    pass: with one input channel the former is as cheap to compute again as the latter.
    """

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, *spatial) to (B, C', *spatial)."""
        first, *layers = self
        assert isinstance(first, PlainBlock)
        x = convolve(image, *parameters(first.conv))
        slope: Tensor | None = first.activation.weight
        with convolved_again(x, image, *parameters(first.conv)):
            x, slope = self._step(layers[0], x, slope)
        for layer in layers[1:]:
            x, slope = self._step(layer, x, slope)
        return x if slope is None else instance_norm_prelu([x], slope, overwrite=True)

    def _step(self, layer: nn.Module, x: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One more layer; ``slope``, in and out, is that of an activation of ``x`` that is still to be done."""
        if not isinstance(layer, PlainBlock):
            return layer(x if slope is None else instance_norm_prelu([x], slope, overwrite=True)), None
        weight, bias = parameters(layer.conv)
        x = convolve(x, weight, bias) if slope is None else normalise_and_convolve(x, slope, weight, bias)
        return x, layer.activation.weight


class LargeKernelBlock(nn.Module):
    """Three parallel convolutions (3, K, 1), each with its own instance normalisation, summed, then PReLU.

    When input and output have the same number of channels the input itself joins the sum.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: K, odd and above 3.
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.regular = convolution(spatial_dims, in_channels, out_channels)
        self.large = convolution(spatial_dims, in_channels, out_channels, kernel_size)
        self.point = convolution(spatial_dims, in_channels, out_channels, 1)
        self.residual = in_channels == out_channels
        self.activation = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        branches = [convolve(x, *parameters(conv)) for conv in (self.regular, self.large, self.point)]
        residual = x.to(branches[0].dtype) if self.residual else None
        return instance_norm_prelu(branches, self.activation.weight, residual, overwrite=True)


def block(spatial_dims: int, in_channels: int, out_channels: int, kernel_size: int) -> PlainBlock | LargeKernelBlock:
    """The published choice: a plain block for kernel 3, a large-kernel block above.

    Raises:
        InputError: when ``kernel_size`` is even or below 3.
    """
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}; expected an odd number from 3 on.")
    if kernel_size == 3:
        return PlainBlock(spatial_dims, in_channels, out_channels)
    return LargeKernelBlock(spatial_dims, in_channels, out_channels, kernel_size)


class FlowEstimator(nn.Module):
    """Velocity of one level from the features of both images.

    The published input is [fixed + moving, fixed - moving]. When the first layer is a plain convolution that sum and
    difference are folded into its weights, which gives the same numbers from [fixed, moving] with two volumes less.

    Args:
        spatial_dims: 2 or 3.
        channels: N, channels of each feature map.
        search_radius: r; the hidden layer has (2 r + 1) ** 3 channels.
        kernel_size: of the mixing block; None for a convolution with ReLU and without normalisation.
    """

    def __init__(
        self, spatial_dims: int, channels: int, search_radius: int = 1, kernel_size: int | None = None
    ) -> None:
        super().__init__()
        hidden = (2 * search_radius + 1) ** 3
        self.mix: nn.Module
        if kernel_size is None:
            self.mix = convolution(spatial_dims, 2 * channels, 2 * channels)
        else:
            self.mix = block(spatial_dims, 2 * channels, 2 * channels, kernel_size)
        self.reduce = convolution(spatial_dims, 2 * channels, hidden)
        self.flow = convolution(spatial_dims, hidden, spatial_dims)

    def forward(self, pair: Tensor) -> Tensor:
        """Features (B, 2 N, *spatial), of the fixed image and of the warped moving one, to (B, d, *spatial)."""
        if isinstance(self.mix, (nn.Conv2d, nn.Conv3d)):
            weight, bias = parameters(self.mix)
            on_sum, on_difference = weight.chunk(2, dim=1)
            x = convolve(pair, torch.cat([on_sum + on_difference, on_sum - on_difference], dim=1), bias)
            x = rectify_and_convolve(x, *parameters(self.reduce))
        else:
            fixed, moving = pair.chunk(2, dim=1)
            x = self.mix(torch.cat([fixed + moving, fixed - moving], dim=1))
            x = convolve(x, *parameters(self.reduce))
        flow = rectify_and_convolve(x, *parameters(self.flow))
        return flow.float() if flow.dtype.itemsize < 4 else flow

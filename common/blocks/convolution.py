# SPDX-License-Identifier: Apache-2.0
"""Convolutions together with the activation before them, which is computed again in the backward pass, not stored.

A convolution needs its input for the gradient of its weights. When that input is an activation, ``relu(x)`` or
``prelu(instance_norm(x))``, it is a few cheap passes away from ``x``; only one of the two has to be kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from common.blocks.normalisation import EPS, instance_norm_prelu, normalise, normalise_again, normalise_backward

# Fewer output channels than this leave the vector lanes of a convolution of the gradient empty.
FEW_CHANNELS = 8


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of stride 1 that keeps the size, zeros outside.

    Args:
        x: (B, C, *spatial), two or three spatial axes; decides the type of the computation.
        weight: (C', C, *kernel), odd kernel sizes.
        bias: (C',).

    Returns:
        (B, C', *spatial) of the type of ``x``.
    """
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if _plain(x, weight):
        return _convolution(x, weight, bias)
    result: Tensor = _Convolve.apply(x, weight, bias)
    return result


def rectify_and_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolve(relu(x), weight, bias)``; overwrites ``x``, which nothing else may need afterwards."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if _plain(x, weight):
        return _convolution(F.relu_(x), weight, bias)
    result: Tensor = _RectifyAndConvolve.apply(x, weight, bias)
    return result


def normalise_and_convolve(x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolve(instance_norm_prelu([x], slope), weight, bias)``; may overwrite ``x`` if nobody asks for gradients."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if _plain(x, weight):
        return _convolution(instance_norm_prelu([x], slope, overwrite=True), weight, bias)
    result: Tensor = _NormaliseAndConvolve.apply(x, slope, weight, bias)
    return result


def _plain(x: Tensor, weight: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return not recorded or torch.jit.is_tracing() or torch.compiler.is_compiling()


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    convolution = F.conv2d if x.ndim == 4 else F.conv3d
    return convolution(x, weight, bias, padding=[n // 2 for n in weight.shape[2:]])


def _gradients(grad: Tensor, x: Tensor, weight: Tensor, wanted: bool) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the convolution's input (None unless ``wanted``), weight and bias."""
    axes = list(range(2, x.ndim))
    by_convolution = wanted and x.device.type == "cpu" and weight.shape[0] >= FEW_CHANNELS
    on_x: Tensor | None
    on_x, on_weight, _ = torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        None,
        [1] * len(axes),
        [n // 2 for n in weight.shape[2:]],
        [1] * len(axes),
        False,
        [0] * len(axes),
        1,
        [wanted and not by_convolution, True, False],
    )
    if by_convolution:
        # The CPU's backward convolution runs at up to two thirds of the speed of a forward one of the same size.
        layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        flipped = weight.flip(axes).transpose(0, 1)
        on_x = _convolution(grad, flipped.contiguous(memory_format=layout), None)
    return on_x, on_weight, grad.sum((0, *axes))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolution(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _gradients(grad, x, weight, ctx.needs_input_grad[0])


class _RectifyAndConvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rectified = F.relu_(x)
        ctx.save_for_backward(rectified, weight)
        return _convolution(rectified, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rectified, weight = ctx.saved_tensors
        on_x, on_weight, on_bias = _gradients(grad, rectified, weight, ctx.needs_input_grad[0])
        if on_x is not None:
            torch.ops.aten.threshold_backward.grad_input(on_x, rectified, 0, grad_input=on_x)
        return on_x, on_weight, on_bias


class _NormaliseAndConvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        activated, scales, shifts = normalise([x], slope, None, EPS)
        ctx.save_for_backward(x, slope, scales, shifts, weight)
        return _convolution(activated, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, scales, shifts, weight = ctx.saved_tensors
        activated = normalise_again([x], slope, scales, shifts)
        on_activated, on_weight, on_bias = _gradients(grad, activated, weight, True)
        del activated
        assert on_activated is not None
        on_slope = normalise_backward([x], slope, scales, shifts, on_activated, [on_activated])
        return on_activated, on_slope, on_weight, on_bias

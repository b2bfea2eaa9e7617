# SPDX-License-Identifier: Apache-2.0
"""Instance normalisation with learned scale and shift, and leaky ReLU, of which only the input is stored."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.autograd import first_order
from common.blocks.normalisation import EPS, instance_norm_prelu
from common.blocks.remade import Remade


class AffineNorm(nn.Module):
    """``leaky_relu(weight * instance_norm(x) + bias)``, statistics of each sample and channel.

    Args:
        channels: of the input.
        slope: of the activation at negative numbers; 1 is none.
    """

    def __init__(self, channels: int, slope: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.slope = slope

    def forward(self, x: Tensor) -> Remade:
        """(B, C, *spatial) to the same, in the type and memory layout of ``x``, which the result holds on to."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return _remade(self._traceable(x))
        if not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, self.weight, self.bias))):
            return _remade(_normalise(x, self.weight, self.bias, self.slope)[0])
        value, mean, scale = _AffineNorm.apply(x, self.weight, self.bias, self.slope)
        parameters = self.weight.detach(), self.bias.detach()
        return Remade(value, functools.partial(_normalise_again, x.detach(), *parameters, mean, scale, self.slope))

    def _traceable(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        normalised = instance_norm_prelu([x], torch.ones_like(self.weight[:1]))
        affine = normalised * self.weight.to(x.dtype).view(shape) + self.bias.to(x.dtype).view(shape)
        return F.leaky_relu(affine, self.slope)


def _remade(value: Tensor) -> Remade:
    """Where there is no backward pass."""
    return Remade(value, lambda: value)


def _normalise(x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and reciprocal standard deviation (B, C)."""
    # The batch normalisation of one sample: torch's instance normalisation would leave the channels-last layout.
    samples = [torch.native_batch_norm(sample, weight, bias, None, None, True, 0.0, EPS) for sample in x.split(1)]
    values, means, scales = zip(*samples, strict=True)
    return _activate(_together(values), slope), torch.stack(means), torch.stack(scales)


def _normalise_again(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, scale: Tensor, slope: float) -> Tensor:
    with torch.no_grad():
        variances = scale**-2 - EPS
        parts = zip(x.split(1), mean, variances, strict=True)
        samples = [F.batch_norm(sample, m, v, weight, bias, eps=EPS) for sample, m, v in parts]
        return _activate(_together(samples), slope)


def _together(samples: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(samples)) if len(samples) > 1 else samples[0]


def _activate(x: Tensor, slope: float) -> Tensor:
    return x if slope == 1 else F.leaky_relu_(x, slope)


class _AffineNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
        value, mean, scale = _normalise(x, weight, bias, slope)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.slope = slope
        ctx.mark_non_differentiable(mean, scale)
        return value, mean, scale

    @staticmethod
    @first_order("The normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors
        if ctx.slope != 1:
            value = _normalise_again(x, weight, bias, mean, scale, ctx.slope)
            # In the place of the result, whose signs are all that is needed of it.
            grad = torch.ops.aten.leaky_relu_backward.grad_input(grad, value, ctx.slope, True, grad_input=value)
        samples = [
            torch.ops.aten.native_batch_norm_backward(g, sample, weight, None, None, m, s, True, EPS, [True] * 3)
            for g, sample, m, s in zip(grad.split(1), x.split(1), mean, scale, strict=True)
        ]
        on_x, on_weight, on_bias = zip(*samples, strict=True)
        return _together(on_x), torch.stack(on_weight).sum(0), torch.stack(on_bias).sum(0), None

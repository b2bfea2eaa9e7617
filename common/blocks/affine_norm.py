# SPDX-License-Identifier: Apache-2.0
"""Instance normalisation, with learned scale and shift or without, and leaky ReLU; only the input is stored."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.autograd import first_order
from common.blocks.normalisation import Statistics, instance_norm_prelu, measure
from common.blocks.pieces import Matrix, in_order
from common.blocks.remade import Remade, stored
from common.tracing import is_traced


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
        return normalise(x, self.slope, self.weight, self.bias)


def normalise(x: Tensor, slope: float, weight: Tensor | None = None, bias: Tensor | None = None) -> Remade:
    """``leaky_relu(weight * instance_norm(x) + bias)``, of which only ``x`` is stored.

    Args:
        x: (B, C, *spatial).
        slope: of the activation at negative numbers; 1 is none.
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.

    Returns:
        The same in the type and memory layout of ``x``, which it holds on to.
    """
    if is_traced():
        return stored(_traceable(x, slope, weight, bias))
    x = in_order(x)
    if not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))):
        return stored(_activate(x, _Line.of(measure([x]), weight, bias), slope))
    value, *statistics = _AffineNorm.apply(x, weight, bias, slope)
    line = _Line.of(Statistics(*statistics), *(None if p is None else p.detach() for p in (weight, bias)))
    return Remade(value, functools.partial(_activate, x.detach(), line, slope))


def _traceable(x: Tensor, slope: float, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    value, shape = instance_norm_prelu([x], x.new_ones(1)), (1, -1, *[1] * (x.ndim - 2))
    if weight is not None:
        value = value * weight.to(x.dtype).view(shape)
    if bias is not None:
        value = value + bias.to(x.dtype).view(shape)
    return F.leaky_relu(value, slope)


class _Line(NamedTuple):
    """``scale * x + shift``, each (B, 1, C, 1) or (B, 1, 1, C)."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, statistics: Statistics, weight: Tensor | None, bias: Tensor | None) -> _Line:
        """What normalises, then multiplies and shifts."""
        scale, shift = statistics
        if weight is not None:
            factor = weight.to(scale.dtype).view(scale.shape[1:])
            scale, shift = scale * factor, shift * factor
        return cls(scale, shift if bias is None else shift + bias.to(shift.dtype).view(shift.shape[1:]))

    def sample(self, b: int) -> _Line:
        """That of one sample."""
        return _Line(self.scale[b, 0], self.shift[b, 0])

    def at(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Its values at those of a piece of a sample, in ``out`` where that is of their type."""
        out = out if out is not None and out.dtype == self.scale.dtype else None
        return torch.addcmul(self.shift, x.to(self.scale.dtype), self.scale, out=out)


def _activate(x: Tensor, line: _Line, slope: float) -> Tensor:
    with torch.no_grad():
        out, form = torch.empty_like(x), Matrix.of(x)
        for b in range(len(x)):
            of_sample, source, target = line.sample(b), form.sample(b)(x), form.sample(b)(out)
            for cut in form.pieces(source):
                values = of_sample.at(cut(source), cut(target))
                if slope != 1:
                    F.leaky_relu_(values, slope)
                if values.dtype != target.dtype:
                    cut(target).copy_(values)
        return out


class _AffineNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        statistics = measure([x])
        ctx.save_for_backward(x, weight, bias, *statistics)
        ctx.slope = slope
        ctx.mark_non_differentiable(*statistics)
        return _activate(x, _Line.of(statistics, weight, bias), slope), *statistics

    @staticmethod
    @first_order("The normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, scale, shift = ctx.saved_tensors
        grad = grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)
        normal, line = _Line(scale, shift), _Line.of(Statistics(scale, shift), weight, bias)
        on_x, form, sums = torch.empty_like(x), Matrix.of(x), []
        for b in range(len(x)):
            view = form.sample(b)
            y = normal.sample(b)
            z = y if weight is None and bias is None else line.sample(b)
            sample = _SampleBackward(view(x), view(grad), y, z, ctx.slope)
            sums.append(sample.sums(form))
            sample.write(sums[-1], form, view(on_x))
        on_shift, on_scale = (torch.stack(s).sum(0).flatten() for s in zip(*sums, strict=True))
        parameters = ((weight, on_scale), (bias, on_shift))
        return on_x, *(None if p is None else total.to(p.dtype) for p, total in parameters), None


class _SampleBackward(NamedTuple):
    r"""Backward pass of one sample, matrices: y normalised, z = weight * y + bias, h the gradient of z.

    .. math:: \partial L / \partial x = w s (h - \mathrm{mean}(h) - y\,\mathrm{mean}(h y))
    """

    x: Tensor
    incoming: Tensor
    normal: _Line
    line: _Line
    slope: float

    def _at(self, x: Tensor, incoming: Tensor, z: Tensor | None = None) -> Tensor:
        """h of a piece, where z is known already."""
        incoming = incoming.to(self.line.scale.dtype)
        if self.slope == 1:
            return incoming
        z = self.line.at(x) if z is None else z
        return torch.ops.aten.leaky_relu_backward(incoming, z, self.slope, False)

    def sums(self, form: Matrix) -> tuple[Tensor, Tensor]:
        """Over the voxels of the sample those of h and of h y, per channel."""
        h_sum, hy_sum = torch.zeros_like(self.line.scale), torch.zeros_like(self.line.scale)
        for cut in form.pieces(self.x):
            x = cut(self.x)
            y = self.normal.at(x)
            h = self._at(x, cut(self.incoming), y if self.line is self.normal else None)
            h_sum += form.sum(h)
            hy_sum += form.sum(y.mul_(h))
        return h_sum, hy_sum

    def write(self, sums: tuple[Tensor, Tensor], form: Matrix, target: Tensor) -> None:
        """The gradient of x, a linear function of h and x."""
        mean_h, mean_hy = (s / self.x.shape[form.voxel_axis] for s in sums)
        p = -self.line.scale * self.normal.scale * mean_hy
        q = -self.line.scale * (mean_h + self.normal.shift * mean_hy)
        for cut in form.pieces(self.x):
            x = cut(self.x)
            values = torch.addcmul(q, self._at(x, cut(self.incoming)), self.line.scale)
            if values.dtype == target.dtype:
                torch.addcmul(values, x, p, out=cut(target))
            else:
                cut(target).copy_(values.addcmul_(x.to(values.dtype), p))

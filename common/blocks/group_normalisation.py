# SPDX-License-Identifier: Apache-2.0
"""Group normalisation and ReLU as one step that keeps only its input, also together with the convolution after it.

With channels last, torch's own group normalisation on the CPU (2.13) takes the variance as a difference of two sums,
which in a volume of some hundred thousand voxels leaves an error of 1e-3. Here it takes two passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from common.autograd import first_order
from common.blocks.convolution import convolution_gradients, convolved
from common.blocks.pieces import PIECE
from common.tracing import is_traced

EPS = 1e-5


def group_norm_relu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, overwrite: bool = False) -> Tensor:
    """``relu(group_norm(x))`` with the statistics in float32 or finer; what is not stored is computed again.

    Args:
        x: (B, C, *spatial), channels last or contiguous.
        groups: of channels; C is a multiple.
        weight: (C,).
        bias: (C,).
        overwrite: whether the result may take the place of ``x`` when nobody asks for gradients.

    Returns:
        (B, C, *spatial) of the type of ``x``, channels last.
    """
    if is_traced():
        return F.relu(F.group_norm(x.contiguous(), groups, weight, bias, EPS))
    if not _is_recorded(x, weight, bias):
        return _forward(x, groups, weight, bias, overwrite)[0]
    result: Tensor = _GroupNormReLU.apply(x, groups, weight, bias)
    return result


def group_norm_relu_and_convolve(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, kernel: Tensor, kernel_bias: Tensor
) -> Tensor:
    """A convolution of ``group_norm_relu(x, groups, weight, bias)``, which is made again in the backward pass.

    Args:
        x: (B, C, *spatial), which is overwritten when nobody asks for gradients.
        groups: of channels; C is a multiple.
        weight: (C,), of the normalisation.
        bias: (C,), of the normalisation.
        kernel: (C', C, *kernel), odd sizes.
        kernel_bias: (C',).

    Returns:
        (B, C', *spatial) of the type of ``x``.
    """
    kernel, kernel_bias = kernel.to(x.dtype), kernel_bias.to(x.dtype)
    tracing = is_traced()
    if tracing or not _is_recorded(x, weight, bias, kernel, kernel_bias):
        return convolved(group_norm_relu(x, groups, weight, bias, overwrite=True), kernel, kernel_bias)
    result: Tensor = _GroupNormReLUAndConvolve.apply(x, groups, weight, bias, kernel, kernel_bias)
    return result


def _is_recorded(*inputs: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)


def _layout(x: Tensor) -> Any:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def _rows(sample: Tensor) -> Tensor:
    """One sample (C, *spatial) with channels last as a matrix (voxels, C) over its own memory."""
    return sample.movedim(0, -1).flatten(0, -2)


def _pieces(*matrices: Tensor) -> Iterator[list[Tensor]]:
    """Rows that stay in the cache, of each matrix."""
    count, channels = matrices[0].shape
    step = max(PIECE * torch.get_num_threads() // channels, 1) if matrices[0].device.type == "cpu" else count
    for start in range(0, count, step):
        yield [matrix[start : start + step] for matrix in matrices]


def _sums(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).double().sum(0)


def _statistics(rows: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of the group of each channel, (C,) float64."""
    dtype, (voxels, channels) = torch.promote_types(rows.dtype, torch.float32), rows.shape
    means = _sums([piece.sum(0, dtype=dtype) for (piece,) in _pieces(rows)]) / voxels
    mean = _per_channel(means.view(groups, -1).mean(1), channels)
    centre = mean.to(dtype)
    squares = _sums([(piece.to(dtype) - centre).square_().sum(0) for (piece,) in _pieces(rows)]) / voxels
    variance = _per_channel(squares.view(groups, -1).mean(1), channels)
    return mean, torch.rsqrt(variance + EPS)


def _per_channel(of_groups: Tensor, channels: int) -> Tensor:
    return of_groups.repeat_interleave(channels // len(of_groups))


def _forward(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, overwrite: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and mean and scale of each sample and channel, (B, C)."""
    x = x.contiguous(memory_format=_layout(x))
    means, scales = (torch.stack(t) for t in zip(*(_statistics(_rows(s), groups) for s in x), strict=True))
    return _apply(x, weight, bias, means, scales, overwrite), means, scales


def _apply(x: Tensor, weight: Tensor, bias: Tensor, means: Tensor, scales: Tensor, overwrite: bool = False) -> Tensor:
    """The result of known statistics."""
    out = x if overwrite else torch.empty_like(x)
    for sample, result, mean, scale in zip(x, out, means, scales, strict=True):
        factor, summand = _linear(mean, scale, weight, bias)
        for piece, target in _pieces(_rows(sample), _rows(result)):
            target.copy_(torch.addcmul(summand, piece.to(factor.dtype), factor).relu_())
    return out


def _linear(mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand of each channel."""
    factor = scale * weight.detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return factor.to(dtype), (bias.detach() - mean * factor).to(dtype)


class _GroupNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        out, means, scales = _forward(x, groups, weight, bias)
        ctx.groups = groups
        ctx.save_for_backward(x, weight, bias, means, scales)
        return out

    @staticmethod
    @first_order("The group normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        x, grad = (t.contiguous(memory_format=_layout(x)) for t in (x, grad))
        on_x = torch.empty_like(x)
        return on_x, None, *_gradients(grad, on_x, x, ctx.groups, *others)


class _GroupNormReLUAndConvolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, kernel: Tensor, kernel_bias: Tensor
    ) -> Tensor:
        x = x.contiguous(memory_format=_layout(x))
        activated, means, scales = _forward(x, groups, weight, bias)
        ctx.groups = groups
        ctx.save_for_backward(x, weight, bias, means, scales, kernel)
        return convolved(activated, kernel, kernel_bias)

    @staticmethod
    @first_order("The group normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, means, scales, kernel = ctx.saved_tensors
        activated = _apply(x, weight, bias, means, scales)
        on_activated, on_kernel, on_kernel_bias = convolution_gradients(grad, activated, kernel, True)
        del activated
        assert on_activated is not None
        # The gradient at the convolution's input is overwritten by that of x.
        on_x = on_activated.contiguous(memory_format=_layout(x))
        on_weight, on_bias = _gradients(on_x, on_x, x, ctx.groups, weight, bias, means, scales)
        return on_x, None, on_weight, on_bias, on_kernel, on_kernel_bias


def _gradients(
    grad: Tensor, on_x: Tensor, x: Tensor, groups: int, weight: Tensor, bias: Tensor, means: Tensor, scales: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill ``on_x``, which may be ``grad`` itself, and return the gradients of weight and bias; all channels last."""
    on_weight, on_bias = torch.zeros_like(means[0]), torch.zeros_like(means[0])
    for sample, incoming, target, mean, scale in zip(x, grad, on_x, means, scales, strict=True):
        rows = [_rows(t) for t in (sample, incoming, target)]
        factor, summand = _linear(mean, scale, weight, bias)
        parts = [
            torch.stack([active.sum(0), active.mul_(piece).sum(0)])
            for piece, active in _active(rows[0], rows[1], factor, summand)
        ]
        sums, products = _sums(parts)
        # Of the gradient times the normalised values.
        products = scale * (products - mean * sums)
        on_weight += products
        on_bias += sums
        _write(rows, factor, summand, *_means(sums, products, weight, mean, scale, groups))
    return on_weight.to(weight.dtype), on_bias.to(bias.dtype)


def _means(
    sums: Tensor, products: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """What the gradient of the input has of the input itself, and besides: factor and summand per voxel, (C,)."""
    channels = len(sums)
    first, second = (_per_channel((weight * total).view(groups, -1).mean(1), channels) for total in (sums, products))
    return -scale.square() * second, scale * (scale * mean * second - first)


def _active(rows: Tensor, incoming: Tensor, factor: Tensor, summand: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of the input, and of the gradient where ReLU let the value pass, a tensor to write into."""
    for piece, gradient in _pieces(rows, incoming):
        values = piece.to(factor.dtype)
        linear = torch.addcmul(summand, values, factor)
        yield values, torch.ops.aten.threshold_backward(gradient.to(factor.dtype), linear, 0)


def _write(rows: list[Tensor], factor: Tensor, summand: Tensor, on_value: Tensor, constant: Tensor) -> None:
    """Fill the last of ``rows`` with the gradient of the first; both of ``on_value`` and ``constant`` are sums."""
    source, incoming, target = rows
    voxels = len(source)
    on_value, constant = (on_value / voxels).to(factor.dtype), (constant / voxels).to(factor.dtype)
    targets = (piece for (piece,) in _pieces(target))
    for (values, active), piece in zip(_active(source, incoming, factor, summand), targets, strict=True):
        piece.copy_(torch.addcmul(constant, active, factor).addcmul_(values, on_value))

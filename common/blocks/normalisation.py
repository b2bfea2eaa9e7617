# SPDX-License-Identifier: Apache-2.0
"""Instance normalisation and PReLU as one step that keeps only its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-5
# Elements per piece on the CPU: the handful of temporaries of one piece stay in the second-level cache.
PIECE = 2**17


def instance_norm_prelu(
    branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """``prelu(sum of instance_norm(branch) over the branches + residual)``, without affine parameters.

    Statistics are float32 whatever the type of the branches. The backward pass recomputes the normalised values, so
    that nothing but the inputs and two numbers per channel and branch is stored.

    Args:
        branches: one or more (B, C, *spatial) of one type and memory layout (contiguous or channels-last).
        slope: (1,), the shared slope of PReLU for negative values.
        residual: (B, C, *spatial), added as it is, or None.
        eps: added to the variance.

    Returns:
        (B, C, *spatial) in the type and memory layout of the branches.
    """
    inputs = (*branches, slope) if residual is None else (*branches, residual, slope)
    differentiating = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _traceable(branches, slope, residual, eps)
    if not differentiating:
        return _forward(branches, slope, residual, eps)[0]
    result: Tensor = _InstanceNormPReLU.apply(eps, residual is not None, slope, *inputs[:-1])
    return result


def _traceable(branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None, eps: float) -> Tensor:
    dims = tuple(range(2, branches[0].ndim))
    total = None if residual is None else residual.to(_statistics_type(residual))
    for branch in branches:
        values = branch.to(_statistics_type(branch))
        values = values - values.mean(dims, keepdim=True)
        values = values * torch.rsqrt(values.square().mean(dims, keepdim=True) + eps)
        total = values if total is None else total + values
    assert total is not None
    return (total + total.clamp(max=0) * (slope.to(total.dtype) - 1)).to(branches[0].dtype)


def _statistics_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _rows(sample: Tensor, like: Tensor) -> tuple[Tensor, int]:
    """One sample (C, *spatial) as a matrix over its own memory, and the axis that runs over voxels."""
    if like.movedim(0, -1).is_contiguous():
        return sample.movedim(0, -1).reshape(-1, sample.shape[0]), 0
    return sample.reshape(sample.shape[0], -1), 1


def _pieces(voxel_axis: int, *matrices: Tensor) -> Iterator[list[Tensor]]:
    first = matrices[0]
    count, channels = first.shape[voxel_axis], first.shape[1 - voxel_axis]
    step = max(PIECE // channels, 1) if first.device.type == "cpu" else count
    for start in range(0, count, step):
        length = min(step, count - start)
        yield [matrix.narrow(voxel_axis, start, length) for matrix in matrices]


def _statistics(rows: Tensor, voxel_axis: int, eps: float) -> tuple[Tensor, Tensor]:
    """Factor and summand that normalise: 1 / sqrt(variance + eps) and -mean times it.

    Two passes, because the difference of sums of squares cancels in float32.
    """
    dtype, count = _statistics_type(rows), rows.shape[voxel_axis]
    sums = [piece.sum(voxel_axis, keepdim=True, dtype=dtype) for (piece,) in _pieces(voxel_axis, rows)]
    mean = torch.stack(sums).sum(0) / count
    squares = [
        (piece.to(dtype) - mean).square_().sum(voxel_axis, keepdim=True) for (piece,) in _pieces(voxel_axis, rows)
    ]
    scale = torch.rsqrt(torch.stack(squares).sum(0) / count + eps)
    return scale, -mean * scale


def _total(
    pieces: Sequence[Tensor], scales: Sequence[Tensor] | Tensor, shifts: Sequence[Tensor] | Tensor, dtype: torch.dtype
) -> Tensor:
    """Sum of the normalised branches, and of the residual that may follow them."""
    total = torch.addcmul(shifts[0], pieces[0].to(dtype), scales[0])
    for piece, scale, shift in zip(pieces[1:], scales[1:], shifts[1:], strict=False):
        total.add_(shift).addcmul_(piece.to(dtype), scale)
    return total if len(pieces) == len(scales) else total.add_(pieces[-1])


def _forward(
    branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _statistics_type(branches[0])
    inputs = (*branches,) if residual is None else (*branches, residual)
    out = torch.empty_like(branches[0])
    less = slope.detach().to(dtype) - 1
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    for samples in zip(*inputs, out, strict=True):
        rows, axis = zip(*(_rows(sample, samples[0]) for sample in samples), strict=True)
        statistics = [_statistics(matrix, axis[0], eps) for matrix in rows[: len(branches)]]
        sample_scales, sample_shifts = map(list, zip(*statistics, strict=True))
        for *pieces, target in _pieces(axis[0], *rows):
            total = _total(pieces, sample_scales, sample_shifts, dtype)
            target.copy_(torch.addcmul(total, total.clamp(max=0), less))
        scales.append(torch.stack(sample_scales))
        shifts.append(torch.stack(sample_shifts))
    return out, torch.stack(scales), torch.stack(shifts)


class _InstanceNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, with_residual: bool, slope: Tensor, *inputs: Tensor) -> Tensor:
        branches, residual = (inputs[:-1], inputs[-1]) if with_residual else (inputs, None)
        out, scales, shifts = _forward(branches, slope, residual, eps)
        ctx.with_residual = with_residual
        ctx.save_for_backward(slope, scales, shifts, *inputs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, scales, shifts, *inputs = ctx.saved_tensors
        # The gradient at the sum goes to the residual as it is, and through each normalisation to its branch.
        at_sum = torch.empty_like(inputs[0])
        grads = [torch.empty_like(x) for x in inputs[: scales.shape[1]]]
        grad = grad if grad.stride() == inputs[0].stride() else torch.empty_like(inputs[0]).copy_(grad)
        on_slope = torch.zeros((), dtype=scales.dtype, device=grad.device)
        for b in range(grad.shape[0]):
            tensors = [x[b] for x in (*inputs, grad, at_sum, *grads)]
            rows, axes = zip(*(_rows(x, tensors[0]) for x in tensors), strict=True)
            on_slope += _backward_sample(rows, axes[0], len(inputs), scales[b], shifts[b], slope)
        residual = (at_sum,) if ctx.with_residual else ()
        return None, None, on_slope.to(slope.dtype).view_as(slope), *grads, *residual


def _backward_sample(
    rows: Sequence[Tensor], axis: int, count: int, scales: Tensor, shifts: Tensor, slope: Tensor
) -> Tensor:
    """Fill the gradients of one sample; ``rows`` are inputs, incoming gradient, gradient at the sum, branch gradients."""
    dtype, branches, voxels = scales.dtype, scales.shape[0], rows[0].shape[axis]
    less = slope.to(dtype) - 1
    on_slope = torch.zeros((), dtype=dtype, device=scales.device)
    sums = torch.zeros_like(scales[0])
    products = torch.zeros_like(scales)
    for *pieces, incoming, at_sum in _pieces(axis, *rows[: count + 2]):
        total = _total(pieces, scales, shifts, dtype)
        # min(total, 0) * incoming is the slope's gradient, and its sign tells where the slope applies.
        incoming = incoming.to(dtype)
        negative = torch.where(total < 0, incoming, 0)
        on_slope += torch.dot(negative.flatten(), total.flatten()) if total.is_contiguous() else (negative * total).sum()
        incoming = torch.addcmul(incoming, negative, less)
        sums += incoming.sum(axis, keepdim=True)
        for i in range(branches):
            normalised = total if branches == 1 and count == 1 else _total(pieces[i : i + 1], scales[i : i + 1], shifts[i : i + 1], dtype)
            products[i] += (incoming * normalised).sum(axis, keepdim=True)
        at_sum.copy_(incoming)
    for i in range(branches):
        # scale * (g - mean(g) - normalised * mean(g * normalised)) as one linear function of g and the branch.
        on_branch = -scales[i].square() * products[i] / voxels
        constant = -scales[i] * (sums + shifts[i] * products[i]) / voxels
        for piece, at_sum, target in _pieces(axis, rows[i], rows[count + 1], rows[count + 2 + i]):
            linear = torch.addcmul(constant, at_sum.to(dtype), scales[i])
            target.copy_(linear.addcmul_(piece.to(dtype), on_branch))
    return on_slope

# SPDX-License-Identifier: Apache-2.0
"""Instance normalisation and PReLU as one step that keeps only its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from common.autograd import first_order

EPS = 1e-5
# Elements per piece on the CPU: the handful of temporaries of one piece stay in the cache.
PIECE = 2**18


def instance_norm_prelu(
    branches: Sequence[Tensor],
    slope: Tensor,
    residual: Tensor | None = None,
    eps: float = EPS,
    overwrite: bool = False,
) -> Tensor:
    """``prelu(sum of instance_norm(branch) over the branches + residual)``, without affine parameters.

    Statistics are float32 whatever the type of the branches. The backward pass recomputes the normalised values, so
    that nothing but the inputs and two numbers per channel and branch is stored.

    Args:
        branches: one or more (B, C, *spatial) of one type and memory layout (contiguous or channels-last).
        slope: (1,), the shared slope of PReLU for negative values.
        residual: (B, C, *spatial), added as it is, or None.
        eps: added to the variance.
        overwrite: whether the result may take the place of the first branch when nobody asks for gradients.

    Returns:
        (B, C, *spatial) in the type and memory layout of the branches.
    """
    inputs = (*branches, slope) if residual is None else (*branches, residual, slope)
    differentiating = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return _traceable(branches, slope, residual, eps)
    if not differentiating:
        return normalise(branches, slope, residual, eps, branches[0] if overwrite else None)[0]
    result: Tensor = _InstanceNormPReLU.apply(eps, residual is not None, slope, *inputs[:-1])
    return result


def _traceable(branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None, eps: float) -> Tensor:
    total = None if residual is None else residual.to(_statistics_type(residual))
    for branch in branches:
        values = branch.to(_statistics_type(branch))
        values = values - _mean_over_voxels(values)
        values = values * torch.rsqrt(_mean_over_voxels(values.square()) + eps)
        total = values if total is None else total + values
    assert total is not None
    return (total + total.clamp(max=0) * (slope.to(total.dtype) - 1)).to(branches[0].dtype)


def _mean_over_voxels(values: Tensor) -> Tensor:
    """(B, C, 1, ...), axis by axis: runtimes of exported files add up millions of voxels in float32 one by one."""
    for axis in range(values.ndim - 1, 1, -1):
        values = values.mean(axis, keepdim=True)
    return values


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


def normalise(
    branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None, eps: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The result without autograd, and factors and summands of the normalisation, (B, branches, C, 1) or (..., 1, C).

    Args:
        branches: see :func:`instance_norm_prelu`.
        slope: see there.
        residual: see there.
        eps: see there.
        out: where the result goes; may be one of the branches.
    """
    inputs = (*branches,) if residual is None else (*branches, residual)
    out = torch.empty_like(branches[0]) if out is None else out
    scales: list[Tensor] = []
    shifts: list[Tensor] = []
    for samples in zip(*inputs, out, strict=True):
        rows, axes = zip(*(_rows(sample, samples[0]) for sample in samples), strict=True)
        statistics = [_statistics(matrix, axes[0], eps) for matrix in rows[: len(branches)]]
        sample_scales, sample_shifts = map(list, zip(*statistics, strict=True))
        _activate(rows, axes[0], sample_scales, sample_shifts, slope)
        scales.append(torch.stack(sample_scales))
        shifts.append(torch.stack(sample_shifts))
    return out, torch.stack(scales), torch.stack(shifts)


def normalise_again(inputs: Sequence[Tensor], slope: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """The result of :func:`normalise` once more, from the branches (and residual) and what that returned beside it."""
    out = torch.empty_like(inputs[0])
    for b, samples in enumerate(zip(*inputs, out, strict=True)):
        rows, axes = zip(*(_rows(sample, samples[0]) for sample in samples), strict=True)
        _activate(rows, axes[0], scales[b], shifts[b], slope)
    return out


def _activate(
    rows: Sequence[Tensor],
    axis: int,
    scales: Sequence[Tensor] | Tensor,
    shifts: Sequence[Tensor] | Tensor,
    slope: Tensor,
) -> None:
    """Fill the last of ``rows``, the result, from the others."""
    less = slope.detach().to(scales[0].dtype) - 1
    for *pieces, target in _pieces(axis, *rows):
        total = _total(pieces, scales, shifts, less.dtype)
        _addcmul(target, total, total.clamp(max=0), less)


def _addcmul(target: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """``target`` becomes ``a + b * c`` in its own type."""
    if target.dtype == a.dtype:
        torch.addcmul(a, b, c, out=target)
    else:
        target.copy_(torch.addcmul(a, b, c))


class _InstanceNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, with_residual: bool, slope: Tensor, *inputs: Tensor) -> Tensor:
        branches, residual = (inputs[:-1], inputs[-1]) if with_residual else (inputs, None)
        out, scales, shifts = normalise(branches, slope, residual, eps)
        ctx.save_for_backward(slope, scales, shifts, *inputs)
        return out

    @staticmethod
    @first_order("The normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, scales, shifts, *inputs = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        return None, None, normalise_backward(inputs, slope, scales, shifts, grad, grads), *grads


def normalise_backward(
    inputs: Sequence[Tensor], slope: Tensor, scales: Tensor, shifts: Tensor, grad: Tensor, grads: Sequence[Tensor]
) -> Tensor:
    """Fill ``grads``, the gradients of the inputs, and return the gradient of the slope.

    Args:
        inputs: branches, and residual if there is one.
        slope: of PReLU.
        scales: as returned by :func:`normalise`.
        shifts: as returned by :func:`normalise`.
        grad: gradient of the result; ``grads[0]`` may be the same tensor if that is the only one.
        grads: tensors like ``inputs``.
    """
    grad = grad if grad.stride() == inputs[0].stride() else torch.empty_like(inputs[0]).copy_(grad)
    on_slope = torch.zeros((), dtype=scales.dtype, device=grad.device)
    for b in range(grad.shape[0]):
        tensors = [x[b] for x in (*inputs, grad, *grads)]
        rows, axes = zip(*(_rows(x, tensors[0]) for x in tensors), strict=True)
        on_slope += _SampleBackward(rows, axes[0], len(inputs), scales[b], shifts[b], slope).run()
    return on_slope.to(slope.dtype).view_as(slope)


class _SampleBackward:
    """Gradients of one sample; ``rows`` are inputs, incoming gradient, gradients of the inputs.

    The gradient at the sum of the branches is computed twice, which takes less time than storing it.
    """

    def __init__(
        self, rows: Sequence[Tensor], axis: int, count: int, scales: Tensor, shifts: Tensor, slope: Tensor
    ) -> None:
        self.rows, self.axis, self.count = rows, axis, count
        self.scales, self.shifts = scales, shifts
        self.less = slope.to(scales.dtype) - 1

    def _at_sum(self, pieces: Sequence[Tensor], incoming: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = _total(pieces, self.scales, self.shifts, self.less.dtype)
        incoming = incoming.to(self.less.dtype)
        # The vectorised way to keep what belongs to positive values; `where` takes twenty times as long.
        negative = incoming - torch.ops.aten.threshold_backward(incoming, total, 0)
        return total, negative, torch.addcmul(incoming, negative, self.less)

    def run(self) -> Tensor:
        scales, shifts, axis = self.scales, self.shifts, self.axis
        branches = scales.shape[0]
        on_slope = torch.zeros_like(self.less).sum()
        sums, products = torch.zeros_like(scales[0]), torch.zeros_like(scales)
        for *pieces, incoming in _pieces(axis, *self.rows[: self.count + 1]):
            total, negative, at_sum = self._at_sum(pieces, incoming)
            on_slope += (negative * total).sum()
            sums += at_sum.sum(axis, keepdim=True)
            for i in range(branches):
                part = slice(i, i + 1)
                normalised = total if self.count == 1 else _total(pieces[part], scales[part], shifts[part], total.dtype)
                products[i] += (at_sum * normalised).sum(axis, keepdim=True)
        # scale * (g - mean(g) - normalised * mean(g * normalised)) as one linear function of g and the branch.
        voxels = self.rows[0].shape[axis]
        on_branch = -scales.square() * products / voxels
        constant = -scales * (sums + shifts * products) / voxels
        for pieces in _pieces(axis, *self.rows):
            inputs, incoming, targets = pieces[: self.count], pieces[self.count], pieces[self.count + 1 :]
            _, _, at_sum = self._at_sum(inputs, incoming)
            for i, target in enumerate(targets[:branches]):
                linear = torch.addcmul(constant[i], at_sum, scales[i])
                _addcmul(target, linear, inputs[i].to(at_sum.dtype), on_branch[i])
            for target in targets[branches:]:
                # The residual receives the gradient as it is.
                target.copy_(at_sum)
        return on_slope

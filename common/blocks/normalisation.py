# SPDX-License-Identifier: Apache-2.0
r"""Instance normalisation and PReLU as one step that keeps only its inputs.

Per sample and channel, with branches :math:`x_k`, residual r, slope a, and means over the n voxels:

.. math::
    y_k = s_k x_k + t_k, \quad s_k = 1 / \sqrt{\mathrm{var}(x_k) + \epsilon}, \quad t_k = -s_k\,\mathrm{mean}(x_k),
    \qquad z = \sum_k y_k + r, \qquad \mathrm{out} = z + (a - 1) \min(z, 0).

Backward, with the incoming gradient g and :math:`g^- = g` where z <= 0, else 0:

.. math::
    h = \partial L / \partial z = g + (a - 1) g^-, \qquad \partial L / \partial a = \sum g^- z, \qquad
    \partial L / \partial r = h.

Mean and variance depend on every voxel of x: :math:`\partial y_i / \partial x_j = s (\delta_{ij} - 1/n - y_i y_j / n)`,
thus, for each branch, a linear function of h and x whose three factors are numbers per channel:

.. math::
    \partial L / \partial x = s (h - \mathrm{mean}(h) - y\,\mathrm{mean}(h y)) = s h + p x + q, \quad
    p = -s^2\,\mathrm{mean}(h y), \quad q = -s (\mathrm{mean}(h) + t\,\mathrm{mean}(h y)).

:func:`plain_form` is the forward pass in torch's own operations; autograd of it gives the same gradients and stores
several volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.autograd import first_order
from common.blocks.pieces import Matrix, in_order
from common.tracing import is_traced

EPS = 1e-5


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
        branches: one or more (B, C, *spatial) of one type and memory layout (contiguous or channels-last; another
            order of axes is copied).
        slope: (1,), the shared slope of PReLU for negative values.
        residual: (B, C, *spatial), added as it is, or None.
        eps: added to the variance.
        overwrite: whether the result may take the place of the first branch when nobody asks for gradients.

    Returns:
        (B, C, *spatial) in the type and memory layout of the branches.
    """
    if is_traced():
        return plain_form(branches, slope, residual, eps)
    summands = Summands(tuple(branches), residual).each(in_order)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*summands.tensors, slope)):
        result: Tensor = _InstanceNormPReLU.apply(eps, slope, summands.residual, *summands.branches)
        return result
    return activate(summands, measure(summands.branches, eps), slope, summands.branches[0] if overwrite else None)


def plain_form(branches: Sequence[Tensor], slope: Tensor, residual: Tensor | None, eps: float) -> Tensor:
    """The formulas in torch's own operations: to be traced and exported, and to be read."""
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


@dataclass(frozen=True)
class Summands:
    """What PReLU acts on the sum of, or one value for each (a gradient, a part).

    Args:
        branches: one or more (B, C, *spatial), each of which is normalised.
        residual: the same shape, added as it is, or None.
    """

    branches: tuple[Tensor, ...]
    residual: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.branches if self.residual is None else (*self.branches, self.residual)

    def each(self, function: Callable[[Tensor], Tensor]) -> Summands:
        """``function`` of each."""
        return Summands(
            tuple(function(x) for x in self.branches), None if self.residual is None else function(self.residual)
        )


class Statistics(NamedTuple):
    """What normalises the branches: ``y = scale * x + shift``; each (B, branches, C, 1) or (B, branches, 1, C)."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def stack(cls, parts: Sequence[Statistics]) -> Statistics:
        """Those of all branches, or samples, from those of each."""
        return cls(torch.stack([part.scale for part in parts]), torch.stack([part.shift for part in parts]))

    def sample(self, b: int) -> Statistics:
        """Those of one sample."""
        return Statistics(self.scale[b], self.shift[b])


def measure(branches: Sequence[Tensor], eps: float = EPS) -> Statistics:
    """Statistics of each sample of each branch (B, C, *spatial)."""
    form = Matrix.of(branches[0])
    samples = [[_measure(form.sample(b)(x), form, eps) for x in branches] for b in range(branches[0].shape[0])]
    return Statistics.stack([Statistics.stack(sample) for sample in samples])


def _measure(x: Tensor, form: Matrix, eps: float) -> Statistics:
    """Scale and shift, (C, 1) or (1, C), of one branch of one sample.

    Two passes, because the difference of sums of squares cancels in float32.
    """
    dtype, voxels = _statistics_type(x), x.shape[form.voxel_axis]
    mean = torch.stack([form.sum(cut(x), dtype) for cut in form.pieces(x)]).sum(0) / voxels
    squares = [form.sum((cut(x).to(dtype) - mean).square_()) for cut in form.pieces(x)]
    scale = torch.rsqrt(torch.stack(squares).sum(0) / voxels + eps)
    return Statistics(scale, -mean * scale)


def activate(summands: Summands, statistics: Statistics, slope: Tensor, out: Tensor | None = None) -> Tensor:
    """``z + (a - 1) min(z, 0)``, (B, C, *spatial), without autograd; ``out`` may be one of the branches."""
    first = summands.branches[0]
    out, form = torch.empty_like(first) if out is None else out, Matrix.of(first)
    less = slope.detach().to(statistics.scale.dtype) - 1
    for b in range(first.shape[0]):
        sample, of_sample, target = summands.each(form.sample(b)), statistics.sample(b), form.sample(b)(out)
        for cut in form.pieces(target):
            z = _sum(sample.each(cut), of_sample)
            _addcmul(cut(target), z, z.clamp(max=0), less)
    return out


def _normalised(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, x.to(scale.dtype), scale)


def _sum(piece: Summands, statistics: Statistics) -> Tensor:
    """z, the sum of the normalised branches and of the residual."""
    (scale, *scales), (shift, *shifts) = statistics
    z = _normalised(piece.branches[0], scale, shift)
    for x, scale, shift in zip(piece.branches[1:], scales, shifts, strict=True):
        z.add_(shift).addcmul_(x.to(z.dtype), scale)
    return z if piece.residual is None else z.add_(piece.residual)


def _addcmul(target: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    """``target`` becomes ``a + b * c`` in its own type."""
    if target.dtype == a.dtype:
        torch.addcmul(a, b, c, out=target)
    else:
        target.copy_(torch.addcmul(a, b, c))


class _InstanceNormPReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, eps: float, slope: Tensor, residual: Tensor | None, *branches: Tensor) -> Tensor:
        statistics = measure(branches, eps)
        ctx.save_for_backward(slope, *statistics, residual, *branches)
        return activate(Summands(branches, residual), statistics, slope)

    @staticmethod
    @first_order("The normalisation of common.blocks", "that of torch.nn")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        slope, scale, shift, residual, *branches = ctx.saved_tensors
        summands = Summands(tuple(branches), residual)
        on_summands = summands.each(torch.empty_like)
        on_slope = write_gradients(summands, Statistics(scale, shift), slope, grad, on_summands)
        return None, on_slope, on_summands.residual, *on_summands.branches


def write_gradients(
    summands: Summands, statistics: Statistics, slope: Tensor, grad: Tensor, on_summands: Summands
) -> Tensor:
    """Backward pass of :func:`measure` and :func:`activate`.

    Args:
        summands: what was added up.
        statistics: what :func:`measure` returned.
        slope: of PReLU.
        grad: gradient of the result; may be the tensor that becomes the gradient of the only branch.
        on_summands: tensors like ``summands``, which are filled with their gradients.

    Returns:
        The gradient of the slope.
    """
    first = summands.branches[0]
    grad = grad if grad.stride() == first.stride() else torch.empty_like(first).copy_(grad)
    form, less = Matrix.of(first), slope.to(statistics.scale.dtype) - 1
    on_slope = less.new_zeros(())
    for b in range(grad.shape[0]):
        view = form.sample(b)
        sample = _SampleBackward(summands.each(view), view(grad), statistics.sample(b), less, form)
        sums = sample.sums()
        on_slope += sums.on_slope
        sample.write(sums, on_summands.each(view))
    return on_slope.to(slope.dtype).view_as(slope)


class _AtSum(NamedTuple):
    """At the sum z of a piece: its value, the incoming gradient where z <= 0 (else 0), and h, the gradient of z."""

    z: Tensor
    incoming_below: Tensor
    h: Tensor


class _Sums(NamedTuple):
    """Over the voxels of a sample: the gradient of the slope, the sum of h per channel and, per branch, of h y."""

    on_slope: Tensor
    h: Tensor
    hy: Tensor


@dataclass(frozen=True)
class _SampleBackward:
    """Backward pass of one sample, matrices of the form ``form``; ``less`` is a - 1.

    What belongs to z is computed in both, which takes less time than storing it.
    """

    summands: Summands
    incoming: Tensor
    statistics: Statistics
    less: Tensor
    form: Matrix

    def _at_sum(self, piece: Summands, incoming: Tensor) -> _AtSum:
        z = _sum(piece, self.statistics)
        incoming = incoming.to(z.dtype)
        # The vectorised way to keep what belongs to positive values; `where` takes twenty times as long.
        below = incoming - torch.ops.aten.threshold_backward(incoming, z, 0)
        return _AtSum(z, below, torch.addcmul(incoming, below, self.less))

    def sums(self) -> _Sums:
        """First pass, over all voxels."""
        scale, shift = self.statistics
        on_slope, h, hy = scale.new_zeros(()), torch.zeros_like(scale[0]), torch.zeros_like(scale)
        for cut in self.form.pieces(self.incoming):
            piece = self.summands.each(cut)
            at = self._at_sum(piece, cut(self.incoming))
            on_slope += (at.incoming_below * at.z).sum()
            h += self.form.sum(at.h)
            for k, x in enumerate(piece.branches):
                # A single summand is the sum.
                y = at.z if len(piece.tensors) == 1 else _normalised(x, scale[k], shift[k])
                hy[k] += self.form.sum(at.h * y)
        return _Sums(on_slope, h, hy)

    def write(self, sums: _Sums, gradients: Summands) -> None:
        """Second pass: ``s h + p x + q`` into the gradient of each branch, h into that of the residual."""
        scale, shift = self.statistics
        voxels = self.incoming.shape[self.form.voxel_axis]
        p = -scale.square() * sums.hy / voxels
        q = -scale * (sums.h + shift * sums.hy) / voxels
        for cut in self.form.pieces(self.incoming):
            piece, targets = self.summands.each(cut), gradients.each(cut)
            h = self._at_sum(piece, cut(self.incoming)).h
            for k, (x, target) in enumerate(zip(piece.branches, targets.branches, strict=True)):
                _addcmul(target, torch.addcmul(q[k], h, scale[k]), x.to(h.dtype), p[k])
            if targets.residual is not None:
                targets.residual.copy_(h)

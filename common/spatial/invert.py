# SPDX-License-Identifier: Apache-2.0
"""The inverse of a displacement field."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.autograd import first_order
from common.spatial.coordinates import check_ddf
from common.spatial.fixed_point import gradient_of_inverse
from common.spatial.lengths import lengths
from common.spatial.points import linear_with_derivative
from common.spatial.warp import warp
from common.tracing import without_autocast

_SLAB_POINTS = 1 << 17
_FIXED_POINT_STEPS = 3
"""Cheap steps before those of Newton: most voxels need no other."""
_SMALLEST_DETERMINANT = 1e-2


def invert(ddf: Tensor, iterations: int = 30, tolerance: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Displacement ``v`` of the inverse of ``x + ddf(x)``: ``v(y) + ddf(y + v(y)) = 0`` for every voxel ``y``.

    ``ddf`` is continued outside by its border values. Each voxel is an equation of its own. A few fixed-point steps
    (Chen et al., Med. Phys. 35(1), 2008) solve the easy ones; the others get damped Newton steps with the exact
    derivative of the interpolated field, which also converge where neighbours move apart by more than a voxel and the
    fixed-point iteration does not. It can be differentiated once, with the gradient of the exact solution.

    Args:
        ddf: (B, d, *spatial), 2D or 3D, in voxels.
        iterations: at most so many Newton steps per voxel.
        tolerance: length of ``v(y) + ddf(y + v(y))`` in voxels at which a voxel is solved.

    Returns:
        The inverse, (B, d, *spatial), and what is left of each equation, (B, 1, *spatial), in voxels, both of the dtype
        of ``ddf`` (float32 at least). Where a residual exceeds the tolerance, no point was found that maps to the
        voxel: the field folds nearby; the value there is the best one met.

    Raises:
        ValueError: when ``ddf`` is no displacement field.
        InputError: in the backward pass, when it is to be differentiated again (``create_graph=True``).
    """
    check_ddf(ddf)
    with without_autocast(ddf):
        inverse, residual = _Inverse.apply(ddf.to(torch.promote_types(ddf.dtype, torch.float32)), iterations, tolerance)
    return inverse, residual


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ddf: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
        inverse, residual = _inverted(ddf, iterations, tolerance)
        ctx.save_for_backward(ddf, inverse)
        ctx.mark_non_differentiable(residual)
        return inverse, residual

    @staticmethod
    @first_order("The inverse of a field", "common.spatial.sample_at on a field of your own")
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        ddf, inverse = ctx.saved_tensors
        return gradient_of_inverse(grad, ddf, inverse), None, None


def _inverted(ddf: Tensor, iterations: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """What :func:`invert` returns, without autograd."""
    inverse = torch.empty_like(ddf)
    residual = torch.empty_like(ddf[:, :1])
    shape = ddf.shape[2:]
    planes = max(1, _SLAB_POINTS * shape[0] // max(1, ddf[0, 0].numel()))
    for batch, field in enumerate(ddf.split(1)):
        rows = field[0].flatten(1).T.contiguous()
        for start in range(0, shape[0], planes):
            part = slice(start, start + planes)
            found, left = (values.flatten(1) for values in _fixed_point(field, start, part))
            hard = (left[0] > tolerance).nonzero()[:, 0]
            if hard.numel():
                targets = _voxels(hard + start * shape[1:].numel(), shape).to(ddf.dtype)
                points, left[0, hard] = solve(rows, shape, targets, targets + found[:, hard].T, iterations, tolerance)
                found[:, hard] = (points - targets).T
            inverse[batch, :, part] = found.view_as(inverse[batch, :, part])
            residual[batch, :, part] = left.view_as(residual[batch, :, part])
    return inverse, residual


def _voxels(index: Tensor, shape: torch.Size) -> Tensor:
    """(N, d) coordinates of the voxels at these places of the flattened image."""
    return torch.stack(torch.unravel_index(index, shape), dim=1)


def _fixed_point(field: Tensor, start: int, part: slice) -> tuple[Tensor, Tensor]:
    """The best of a few fixed-point steps ``v <- -ddf(y + v)``, on the planes ``part`` of a field (1, d, *spatial).

    Returns:
        (d, *planes), the displacement; and (1, *planes), the length of what is left.
    """
    guess = -field[:, :, part]
    best, shortest = guess, torch.full_like(guess[:, :1], torch.inf)
    # The planes are sampled as an image of their own, which begins at the voxel `start`.
    begin = torch.zeros(1, field.shape[1], *[1] * (field.ndim - 2), dtype=field.dtype, device=field.device)
    begin[:, 0] = start
    for _ in range(_FIXED_POINT_STEPS):
        error = guess + warp(field, guess + begin)
        length = lengths(error)
        better = length < shortest
        best, shortest = torch.where(better, guess, best), torch.where(better, length, shortest)
        guess = guess - error
    return best[0], shortest[0]


def solve(
    rows: Tensor, shape: torch.Size, targets: Tensor, start: Tensor, iterations: int = 30, tolerance: float = 1e-3
) -> tuple[Tensor, Tensor]:
    """Points ``x`` with ``x + ddf(x) = y``, by Newton's method with a step that is halved until the residual falls.

    Args:
        rows: (voxels, d), the field with its components last and its spatial axes flattened.
        shape: spatial shape of the field.
        targets: (N, d), the points ``y`` in voxels.
        start: (N, d), where to begin.
        iterations: at most so many evaluations of the field per point.
        tolerance: length of ``x + ddf(x) - y`` at which a point is solved.

    Returns:
        (N, d), the points; and (N,), that length.
    """
    points, left = start.clone(), targets.new_full(targets.shape[:1], torch.inf)
    active = torch.arange(targets.shape[0], device=targets.device)
    # Of the active ones: where they are, the step wanted from the best point so far, and the part of it that was taken.
    trial, step, part = start, torch.zeros_like(start), torch.ones_like(left)
    for _ in range(iterations):
        value, derivative = linear_with_derivative(rows, shape, trial)
        error = trial + value - targets[active]
        length = error.norm(dim=1)
        better = length < left[active]
        accepted = active[better]
        points[accepted], left[accepted] = trial[better], length[better]
        step[better] = _newton_step(derivative[better], error[better])
        part = torch.where(better, torch.ones_like(part), part / 2)
        keep = left[active] > tolerance
        active, step, part = active[keep], step[keep], part[keep]
        if not active.numel():
            break
        trial = points[active] + part[:, None] * step
    return points, left


def _newton_step(derivative: Tensor, error: Tensor) -> Tensor:
    """-(I + derivative)^-1 error, or the fixed-point step where that matrix is nearly singular."""
    jacobian = derivative + torch.eye(derivative.shape[1], dtype=derivative.dtype, device=derivative.device)
    adjugate, determinant = _adjugate(jacobian)
    safe = determinant.abs() > _SMALLEST_DETERMINANT
    divisor = torch.where(safe, determinant, torch.ones_like(determinant))
    step = (adjugate @ error[:, :, None])[:, :, 0] / divisor[:, None]
    return -torch.where(safe[:, None], step, error)


def _adjugate(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Adjugate (N, d, d) and determinant (N,) of small matrices; a batched solver takes many times as long."""
    if matrix.shape[1] == 2:
        (a, b), (c, d) = matrix.unbind(1)[0].unbind(1), matrix.unbind(1)[1].unbind(1)
        return torch.stack((d, -b, -c, a), dim=1).view(-1, 2, 2), a * d - b * c
    first, second, third = matrix.unbind(2)
    crossed = torch.stack(
        (torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)), dim=1
    )
    return crossed, (first * crossed[:, 0]).sum(1)

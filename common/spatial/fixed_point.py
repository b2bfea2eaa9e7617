# SPDX-License-Identifier: Apache-2.0
"""The inverse of a displacement field by fixed-point iteration, with its exact gradient.

Source: Honkamaa and Marttinen, "SITReg", MELBA 2024:026 (arXiv 2303.10211), after "Deep equilibrium models" (Bai et
al., NeurIPS 2019); acceleration: Anderson, J. ACM 12(4), 1965. The published code also iterates in the backward pass.
There the equation is one small linear system per voxel, which is solved here: exact, and for less than two iterations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.autograd import first_order
from common.spatial.coordinates import check_ddf
from common.spatial.warp import MODES, PADDINGS, warp, warp_backward
from common.tracing import is_traced, without_autocast

_LOGGER = logging.getLogger(__name__)
MEMORY = 4
"""Evaluations that a step of Anderson's method combines."""
RIDGE = 1e-4
"""Added to the diagonal of the products of their residuals."""
TRACED_STEPS = 20
"""Plain steps of a traced network, in which nothing can stop by value."""
_SLAB_POINTS = 1 << 17


class Solver(NamedTuple):
    """When a fixed-point iteration stops.

    Attributes:
        tolerance: largest change in voxels of a step that counts as none.
        most: evaluations after which it gives up.
    """

    tolerance: float
    most: int


SOLVERS = {"default": Solver(1e-2, 50), "tight": Solver(1e-5, 200)}
"""The published solver, and one for tests and for exact inverses."""


class FixedPoint(NamedTuple):
    """What an iteration came to.

    Attributes:
        value: the last value of the function.
        evaluations: how often it was evaluated.
        residual: the measure of the last step, a scalar; NaN where the function is not finite.
    """

    value: Tensor
    evaluations: int
    residual: Tensor


Measure = Callable[[Tensor, Tensor], Tensor]
"""(change, value) of a step to the scalar that is compared with the tolerance."""


def largest_change(change: Tensor, value: Tensor) -> Tensor:
    """The largest component of the change."""
    least, most = torch.aminmax(change)
    return torch.maximum(-least, most)


def invert_contraction(ddf: Tensor, solver: Solver = SOLVERS["default"]) -> Tensor:
    """Displacement ``v`` of the inverse of ``x + ddf(x)``: ``v(x) = -ddf(x + v(x))``; can be differentiated once.

    For fields whose Lipschitz constant is below 1, such as B-splines within :func:`common.spatial.bspline_bound`;
    others are for :func:`common.spatial.invert`. Each item of a batch is solved by itself, so that it does not depend
    on the others. The gradient is that of the exact solution. In a traced or compiled network a fixed number of plain
    steps takes the place of the solver.

    Args:
        ddf: (B, d, *spatial), in voxels, interpolated linearly and continued by its border values.
        solver: when to stop; see :data:`SOLVERS`.

    Returns:
        (B, d, *spatial), in voxels, float32 (float64 for float64 input). A warning is logged, with the residual, where
        the iteration did not converge.

    Raises:
        ValueError: when ``ddf`` is no displacement field.
        InputError: in the backward pass, when it is to be differentiated again (``create_graph=True``).
    """
    check_ddf(ddf)
    ddf = ddf.to(torch.promote_types(ddf.dtype, torch.float32))
    with without_autocast(ddf):
        if is_traced():
            inverse = -ddf
            for _ in range(TRACED_STEPS):
                inverse = -warp(ddf, inverse)
            return inverse
        result: Tensor = _Inverse.apply(ddf, solver)
        return result


def solve_inverse(ddf: Tensor, solver: Solver) -> FixedPoint:
    """The iteration of :func:`invert_contraction` for a whole batch, which goes on until all of it has converged."""
    return anderson(lambda inverse: warp(ddf, inverse).neg_(), -ddf, largest_change, solver)


def anderson(function: Callable[[Tensor], Tensor], start: Tensor, measure: Measure, solver: Solver) -> FixedPoint:
    """Solve ``x = function(x)`` by Anderson's method, without gradients.

    The second evaluation is at the first value. From the third on the function is evaluated at that combination of the
    last values whose residual is smallest, item by item of the batch.

    Args:
        function: (B, ...) to the same shape.
        start: (B, ...), where to begin.
        measure: of a step, what has to fall below the tolerance; over the whole batch.
        solver: tolerance and number of evaluations, of which there are at least two.
    """
    history = _History(start)
    point = start
    for evaluations in range(1, max(solver.most, 2) + 1):
        value = function(point)
        change = history.add(point, value)
        if evaluations == 1:
            point = value
            continue
        size = measure(change, value)
        if _outcome(size, solver.tolerance) or evaluations >= solver.most:
            break
        point = history.combination()
    return FixedPoint(value, evaluations, size)


def _outcome(size: Tensor, tolerance: float) -> int:
    """1 where the iteration has converged, -1 where it never will (NaN), 0 where it goes on.

    The one place that asks for a value, for which an accelerator is waited for.
    """
    return int((size < tolerance).int() - size.isnan().int())


class _History:
    """The last values of the function, their residuals, and the products of these."""

    def __init__(self, like: Tensor) -> None:
        self.shape, batch = like.shape, like.shape[0]
        self.values = like.new_empty((batch, MEMORY, like[0].numel()))
        self.changes = torch.empty_like(self.values)
        self.products = torch.zeros((batch, MEMORY, MEMORY), dtype=torch.float64, device=like.device)
        self.count = 0

    def add(self, point: Tensor, value: Tensor) -> Tensor:
        """Take the value at a point in the place of the oldest; returns its residual."""
        slot = self.count % MEMORY
        self.count += 1
        self.values[:, slot] = value.flatten(1)
        change = torch.sub(value.flatten(1), point.flatten(1), out=self.changes[:, slot])
        products = self.changes[:, : self.count] @ change[:, :, None]
        known = products.shape[1]
        self.products[:, slot, :known] = self.products[:, :known, slot] = products[:, :, 0].double()
        return change

    def combination(self) -> Tensor:
        """The affine combination of the values whose combined residual is smallest."""
        known = min(self.count, MEMORY)
        system = torch.ones((len(self.values), known + 1, known + 1), dtype=torch.float64, device=self.values.device)
        system[:, 0, 0] = 0
        ridge = RIDGE * torch.eye(known, dtype=system.dtype, device=system.device)
        system[:, 1:, 1:] = self.products[:, :known, :known] + ridge
        right = torch.zeros_like(system[:, :, :1])
        right[:, 0] = 1
        weights = torch.linalg.solve(system, right)[:, 1:].to(self.values.dtype)
        return (weights.mT @ self.values[:, :known]).view(self.shape)


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ddf: Tensor, solver: Solver) -> Tensor:
        found = []
        for item in ddf.split(1):
            solution = solve_inverse(item, solver)
            if _outcome(solution.residual, solver.tolerance) < 1:
                _LOGGER.warning(
                    "The inverse of a field did not converge in %d steps, the last of which moved by %.2g voxels: "
                    "it is not exact.",
                    *(solution.evaluations, float(solution.residual)),
                )
            found.append(solution.value)
        inverse = torch.cat(found)
        ctx.save_for_backward(ddf, inverse)
        return inverse

    @staticmethod
    @first_order("The inverse of a contraction", "common.spatial.sample_at on a field of your own")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        ddf, inverse = ctx.saved_tensors
        return gradient_of_inverse(grad, ddf, inverse), None


def gradient_of_inverse(grad: Tensor, ddf: Tensor, inverse: Tensor) -> Tensor:
    """From the gradient by the inverse to that by the field, of the exact solution; without autograd.

    Args:
        grad: (B, d, *spatial).
        ddf: the same shape.
        inverse: the same shape.
    """
    # With o(v, u) = -u(x + v) at the solution: first (1 - do/dv)^T w = grad, then the gradient is (do/du)^T w.
    items = zip(grad.split(1), ddf.split(1), inverse.split(1), strict=True)
    implicit = torch.cat([implicit_gradient(*item) for item in items])
    linear, border = MODES["bilinear"], PADDINGS["border"]
    on_ddf, _ = warp_backward(implicit.neg_(), ddf, inverse, linear, border, True, False)
    assert on_ddf is not None
    return on_ddf


def implicit_gradient(grad: Tensor, ddf: Tensor, inverse: Tensor) -> Tensor:
    """Solve ``w(x) = -J(x)^T w(x) + grad(x)`` for each voxel, J the derivative of ``ddf`` where ``inverse`` points.

    Args:
        grad: (1, d, *spatial).
        ddf: the same shape.
        inverse: the same shape.
    """
    solution = torch.empty_like(ddf)
    for part, jacobian in _derivatives(ddf, inverse):
        columns = jacobian
        for k in range(len(columns)):
            columns[k, k] += 1
        solution[0, :, part] = _solve(columns, grad[0, :, part])
    return solution


def _derivatives(ddf: Tensor, inverse: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Planes, and there the derivative of component c of ``ddf`` along axis k, (c, k, planes, ...)."""
    dims, depth = ddf.shape[1:3]
    planes = max(1, _SLAB_POINTS * depth // max(1, ddf[0, 0].numel()))
    components = ddf[0, :, None]
    for start in range(0, depth, planes):
        part = slice(start, min(start + planes, depth))
        place = inverse[:, :, part].clone()
        # The planes are sampled as an image of their own, which begins at the voxel `start`.
        place[:, 0] += start
        ones = torch.ones_like(place[:, :1]).expand(dims, *[-1] * (place.ndim - 1))
        place = place.expand(dims, *[-1] * (place.ndim - 1))
        linear, border = MODES["bilinear"], PADDINGS["border"]
        _, slopes = warp_backward(ones, components, place, linear, border, False, True)
        assert slopes is not None
        yield part, slopes


def _solve(columns: Tensor, right: Tensor) -> Tensor:
    """Cramer's rule for the system with these columns, (column, row, ...), and a right side (row, ...)."""
    if len(columns) == 2:
        (a, b), (c, d), (e, f) = columns[0], columns[1], right
        return torch.stack([e * d - f * c, a * f - b * e]).div_(a * d - b * c)
    normals = [_cross(columns[(k + 1) % 3], columns[(k + 2) % 3]) for k in range(3)]
    return torch.stack([_dot(right, normal) for normal in normals]).div_(_dot(columns[0], normals[0]))


def _cross(a: Tensor, b: Tensor) -> list[Tensor]:
    return [
        (a[1] * b[2]).addcmul_(a[2], b[1], value=-1),
        (a[2] * b[0]).addcmul_(a[0], b[2], value=-1),
        (a[0] * b[1]).addcmul_(a[1], b[0], value=-1),
    ]


def _dot(a: Tensor, b: list[Tensor]) -> Tensor:
    return (a[0] * b[0]).addcmul_(a[1], b[1]).addcmul_(a[2], b[2])

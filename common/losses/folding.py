# SPDX-License-Identifier: Apache-2.0
"""Penalty on folding: the volume of the voxel grid's simplices that a field turns over."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient

_SLAB_VOXELS = 1 << 16


class FoldingLoss(nn.Module):
    """Non-diffeomorphic volume (area in two dimensions) of the interior, in voxels, mean over the batch (SITReg v2).

    Liu et al., IJCV 2024: two splittings of the grid's cubes into tetrahedra have ten determinants at each voxel (of
    the squares into triangles, four), of which the negative ones are added up; it is the value of
    :func:`common.metrics.ndv_lumir`. The published loss is the sum over a batch that has one pair.

    Args:
        threshold: determinants count from here on, with their whole value; above 0 the loss can become negative.
    """

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, pred: Tensor) -> Tensor:
        """Penalise a field (B, d, *spatial), 2D or 3D, in voxels, at least three along each axis; returns a scalar.

        Raises:
            InputError: for another shape.
        """
        dims = pred.ndim - 2
        if dims not in (2, 3) or pred.shape[1] != dims or min(pred.shape[2:]) < 3:
            raise InputError(
                f"FoldingLoss got a field of shape {tuple(pred.shape)}; pass (batch, d, *spatial), d axes of 3 or more."
            )
        field = pred.to(computing_dtype(pred))
        gradient = torch.zeros_like(field) if needs_gradient(field) else None
        value = field.new_zeros((), dtype=torch.float64)
        with torch.autocast(field.device.type, enabled=False):
            for b in range(len(field)):
                value += self._add(field[b].detach(), None if gradient is None else gradient[b]) / len(field)
        if gradient is not None:
            gradient /= len(field)
        return with_gradient(value.to(field.dtype), [field], [gradient])

    def _add(self, field: Tensor, gradient: Tensor | None) -> Tensor:
        """The volume of one field (d, *spatial); adds its gradient."""
        total = field.new_zeros((), dtype=torch.float64)
        depth = field.shape[1]
        planes = max(1, _SLAB_VOXELS * depth // field[0].numel())
        for start in range(1, depth - 1, planes):
            part = slice(start - 1, min(start + planes, depth - 1) + 1)
            with torch.set_grad_enabled(gradient is not None):
                slab = field[:, part].requires_grad_(gradient is not None)
                volume = self._volume(slab)
            total += volume.detach().double()
            if gradient is not None:
                gradient[:, part] += torch.autograd.grad(volume, slab)[0]
        return total

    def _volume(self, field: Tensor) -> Tensor:
        """Sum over the inner voxels; a determinant is 6 times the volume of a tetrahedron, twice a triangle's area."""
        negative = [det.clamp(max=self.threshold).sum() for det in _determinants(field)]
        # Two splittings are averaged.
        return -0.5 / (6 if len(field) == 3 else 2) * torch.stack(negative).sum()


def _determinants(field: Tensor) -> Iterator[Tensor]:
    dims = len(field)
    forward, backward = ([_difference(field, {k: step}) for k in range(dims)] for step in (1, -1))
    # A backward difference is the step from the voxel before.
    edges = [(forward[k], -backward[k]) for k in range(dims)]
    if dims == 2:
        for (a, b), (c, d) in itertools.product(*edges):
            yield a * d - b * c
        return
    normals = {(i, j): torch.linalg.cross(edges[1][i], edges[2][j], dim=0) for i in (0, 1) for j in (0, 1)}
    for first, normal in itertools.product(edges[0], normals.values()):
        yield (first * normal).sum(0)
    for step, axes in ((-1, ((0, 1), (0, 2), (1, 2))), (1, ((0, 1), (1, 2), (0, 2)))):
        diagonals = [_difference(field, dict.fromkeys(pair, step)) for pair in axes]
        yield (diagonals[0] * torch.linalg.cross(diagonals[1], diagonals[2], dim=0)).sum(0)


def _difference(field: Tensor, steps: dict[int, int]) -> Tensor:
    """``f(x + step) - f(x)`` of ``f(x) = x + u(x)`` at the inner voxels, (d, *inner)."""
    here, there = field, field
    for axis in range(len(field)):
        inner = field.shape[axis + 1] - 2
        here = here.narrow(axis + 1, 1, inner)
        there = there.narrow(axis + 1, 1 + steps.get(axis, 0), inner)
    moved = field.new_tensor([steps.get(axis, 0) for axis in range(len(field))])
    return there - here + moved.view(-1, *[1] * len(field))

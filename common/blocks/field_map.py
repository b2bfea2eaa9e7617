# SPDX-License-Identifier: Apache-2.0
"""A field of a neural network as a map of points in voxels, evaluated piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField, half_extent
from common.blocks.sitreg import computed_again
from common.spatial import identity_grid
from common.spatial.coordinates import axis_factor, of_axes
from common.tracing import is_traced, without_autocast

_CPU_PIECE, _PIECE = 1 << 12, 1 << 15
"""Points at a time: on the CPU, so that what they become stays in the cache; elsewhere, for the sake of memory."""


class FieldMap:
    """The map ``x -> x + u(x)`` of points in voxels, u a field at the codes of some pairs.

    Points may lie anywhere. All is float32 at least, whatever autocast says.

    Args:
        field: from points in [-1, 1] to displacements.
        code: of B pairs.
        size: spatial size of the image, whose corners the coordinates -1 and 1 are.
    """

    def __init__(self, field: ModulatedField, code: HybridCode, size: Sequence[int]) -> None:
        self.field, self.code, self.size = field, code, size

    def __call__(self, points: Tensor) -> Tensor:
        """Where points go; differentiable any number of times.

        Of many points nothing is stored for the backward pass but themselves: it computes their field again.

        Args:
            points: (B, N, d), or (1, N, d) for the same of each pair.

        Returns:
            (B, N, d).
        """
        with without_autocast(points):
            count = self._piece()
            if points.shape[1] <= count or is_traced():
                return points + self._displacement(points, *self.code)
            displacement: Tensor = _InPieces.apply(
                self._displacement, count, points, *self.code, *self.field.parameters()
            )
            return points + displacement

    def with_derivative(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Where points go, and the derivative there; both can be differentiated once.

        Args:
            points: (B, N, d), or (1, N, d) for the same of each pair.

        Returns:
            (B, N, d), and (B, N, d, d): the derivative of component i along axis j at [..., i, j].
        """
        with without_autocast(points):
            displacement, derivative = self.field.with_derivative(self._normalised(points), self.code)
            half = half_extent(self.size, points)
            identity = torch.eye(len(half), device=half.device, dtype=half.dtype)
            return points + half * displacement, identity + half[:, None] * derivative * self._factor(points)

    def on_grid(self) -> Tensor:
        """The displacement (B, d, *size) of all voxels, in voxels."""
        like = self.code.shared
        with without_autocast(like):
            if is_traced():
                # In one piece: the number of pieces would stay as it is.
                grid = identity_grid(self.size, like.device, like.dtype)
                displacement = self._displacement(grid.flatten(2).transpose(-1, -2), *self.code).transpose(-1, -2)
                return displacement.reshape(-1, len(self.size), *self.size)
            total, count = math.prod(self.size), self._piece()
            pieces = [
                self._again(self._voxels(i, min(i + count, total))).transpose(-1, -2) for i in range(0, total, count)
            ]
            return torch.cat(pieces, dim=2).view(-1, len(self.size), *self.size)

    def _piece(self) -> int:
        shared = self.code.shared
        return max(1, (_CPU_PIECE if shared.device.type == "cpu" else _PIECE) // len(shared))

    def _voxels(self, start: int, stop: int) -> Tensor:
        """Coordinates of the voxels with these numbers in the flattened image, (1, stop - start, d)."""
        like = self.code.shared
        numbers = torch.arange(start, stop, device=like.device)
        return torch.stack(torch.unravel_index(numbers, tuple(self.size)), dim=-1)[None].to(like.dtype)

    def _again(self, points: Tensor) -> Tensor:
        """The displacement, of which nothing but the inputs is stored for the backward pass."""
        return computed_again(self._displacement, points, *self.code)

    def _displacement(self, points: Tensor, shared: Tensor, local: Tensor) -> Tensor:
        """In voxels, of points in voxels."""
        return half_extent(self.size, points) * self.field(self._normalised(points), HybridCode(shared, local))

    def _normalised(self, points: Tensor) -> Tensor:
        """In [-1, 1] inside the image, 0 along an axis of one voxel."""
        if points.stride(0) == 0 and not points.requires_grad:
            # The same points for all pairs: what depends on them alone is computed once.
            points = points[:1]
        return points * self._factor(points) - of_axes([1.0 - 1 // n for n in self.size], points)

    def _factor(self, like: Tensor) -> Tensor:
        return of_axes([axis_factor(n) for n in self.size], like)


class _InPieces(torch.autograd.Function):
    """A function of points and a code, so many points at a time, of which only what goes in is stored.

    Unlike pieces that are checkpointed one by one, nothing of a piece outlives it: the nodes of a graph, small as they
    are, would lie between the volumes that are freed and keep the C library from using their memory again.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, points: Tensor, *others: Tensor) -> Tensor:
        """Points (B, N, d), the two parts of the code and the parameters that the function has."""
        ctx.function, ctx.count, ctx.parameters = function, count, others[2:]
        ctx.save_for_backward(points, *others[:2])
        return torch.cat([function(part, *others[:2]) for part in points.split(count, dim=1)], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, with a history where that is wanted."""
        points, *code = ctx.saved_tensors
        history, needed = torch.is_grad_enabled(), ctx.needs_input_grad[2:]
        if not history:
            code = [part.detach().requires_grad_(n) for part, n in zip(code, needed[1:3], strict=True)]
        places = [place for place, n in enumerate(needed) if n]
        on_points: list[Tensor] = []
        sums: list[Tensor | None] = [None] * len(needed)
        for part, on_part in zip(points.split(ctx.count, dim=1), grad.split(ctx.count, dim=1), strict=True):
            with torch.enable_grad(), without_autocast(grad):
                part = part if history else part.detach().requires_grad_(needed[0])
                inputs = (part, *code, *ctx.parameters)
                value = ctx.function(part, *code)
                found = torch.autograd.grad(value, [inputs[i] for i in places], on_part, create_graph=history)
            for place, one in zip(places, found, strict=True):
                if place == 0:
                    on_points.append(one)
                else:
                    before = sums[place]
                    sums[place] = one if before is None else before + one
        return (None, None, torch.cat(on_points, dim=1) if on_points else None, *sums[1:])

# SPDX-License-Identifier: Apache-2.0
"""Maps of points: a dense displacement field seen as one, two after each other, and the derivative of any."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from common.spatial.points import sample_at

PointMap = Callable[[Tensor], Tensor]
"""Points (B, N, d) of the fixed image in voxels to points of the moving image, (B, N, d) in its voxels.

One that knows its derivative has a method ``with_derivative``, which returns what :func:`map_with_derivative` does.
"""


def field_map(ddf: Tensor) -> PointMap:
    """The map ``x -> x + ddf(x)`` of points anywhere, the field interpolated linearly and continued by its border.

    It can be differentiated twice, to the points and to the field.

    Args:
        ddf: (B, d, *spatial), in voxels.
    """
    return lambda points: points + sample_at(ddf, points).movedim(1, 2)


class ComposedMap:
    """The map ``x -> outer(inner(x))``, with its derivative by the chain rule.

    Args:
        outer: map that is applied last.
        inner: map that is applied first.
    """

    def __init__(self, outer: PointMap, inner: PointMap) -> None:
        self.outer, self.inner = outer, inner

    def __call__(self, points: Tensor) -> Tensor:
        """Where points (B, N, d) go."""
        return self.outer(self.inner(points))

    def with_derivative(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`map_with_derivative`."""
        middle, first = map_with_derivative(self.inner, points)
        values, second = map_with_derivative(self.outer, middle)
        return values, second @ first


def map_with_derivative(function: PointMap, points: Tensor) -> tuple[Tensor, Tensor]:
    """Where a map takes points, and its exact derivative there; both can be differentiated once.

    A map without a derivative of its own is differentiated backwards, once per axis.

    Args:
        function: the map.
        points: (B, N, d), in voxels.

    Returns:
        (B, N, d), and (B, N, d, d): the derivative of component i along axis j at [..., i, j].
    """
    own = getattr(function, "with_derivative", None)
    if own is not None:
        found: tuple[Tensor, Tensor] = own(points)
        return found
    with torch.enable_grad():
        if not points.requires_grad:
            points = points.detach().requires_grad_()
        values = function(points)
        rows = [
            torch.autograd.grad(values[..., i].sum(), points, create_graph=True, materialize_grads=True)[0]
            for i in range(values.shape[-1])
        ]
    return values, torch.stack(rows, dim=-2)

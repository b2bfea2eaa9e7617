# SPDX-License-Identifier: Apache-2.0
"""A dense displacement field seen as a function of points."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from common.spatial.points import sample_at

PointMap = Callable[[Tensor], Tensor]
"""Points (B, N, d) of the fixed image in voxels to points of the moving image, (B, N, d) in its voxels."""


def field_map(ddf: Tensor) -> PointMap:
    """The map ``x -> x + ddf(x)`` of points anywhere, the field interpolated linearly and continued by its border.

    It can be differentiated twice, to the points and to the field.

    Args:
        ddf: (B, d, *spatial), in voxels.
    """
    return lambda points: points + sample_at(ddf, points).movedim(1, 2)

# SPDX-License-Identifier: Apache-2.0
"""Local volume change of a deformation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from common.spatial.coordinates import check_ddf
from common.spatial.slabs import slab_ranges


def jacobian_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the Jacobian of ``x -> x + ddf(x)``.

    Derivatives are those of ``numpy.gradient``: central differences inside, one-sided ones in the outermost voxels.
    Values above 1 expand, between 0 and 1 shrink, at or below 0 fold. Along an axis of one voxel nothing is known to
    change: the determinant of a single slice is that of the map inside its plane.

    Args:
        ddf: (B, d, *spatial), in voxels.

    Returns:
        (B, 1, *spatial), float32 (float64 for float64 input).

    Raises:
        ValueError: when ``ddf`` is no displacement field.
    """
    check_ddf(ddf)
    return torch.cat([determinant for _, _, determinant in determinant_slabs(ddf)], dim=2)


def determinant_slabs(ddf: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Determinants of fields, a few planes at a time.

    Args:
        ddf: (B, d, *spatial), in voxels.

    Yields:
        First plane, end plane, determinant (B, 1, planes, *spatial[1:]).
    """
    depth = ddf.shape[2]
    for start, stop in slab_ranges(0, depth, ddf[:, 0, 0].numel()):
        # One more plane at each side gives central differences; at the ends of the volume they stay one-sided.
        low, high = max(start - 1, 0), min(stop + 1, depth)
        yield start, stop, _determinant(ddf[:, :, low:high])[:, :, start - low : stop - low]


def _determinant(ddf: Tensor) -> Tensor:
    ddf = ddf.to(torch.promote_types(ddf.dtype, torch.float32))
    rows = [_derivatives(ddf[:, k]) for k in range(ddf.shape[1])]
    for k, row in enumerate(rows):
        row[k] = row[k] + 1.0
    return determinant(rows).unsqueeze(1)


def cell_determinant(ddf: Tensor) -> Tensor:
    """Determinant of the backward differences of ``x + ddf(x)``: the volume of the cell before each voxel, in voxels.

    It is spanned by the edges that lead from the neighbours to the voxel, so that there is none at the first voxels.

    Args:
        ddf: (B, d, *spatial), in voxels, two voxels or more along each axis.

    Returns:
        (B, 1, *spatial - 1): entry i is that of voxel i + 1 of each axis.

    Raises:
        ValueError: when ``ddf`` is no displacement field.
    """
    check_ddf(ddf)
    dims = ddf.shape[1]
    ends = _narrowed(ddf, [1] * dims)
    rows: list[list[Tensor]] = [[] for _ in range(dims)]
    for axis in range(dims):
        edge = ends - _narrowed(ddf, [int(k != axis) for k in range(dims)])
        for k, component in enumerate(edge.unbind(1)):
            rows[k].append(component + (1.0 if k == axis else 0.0))
    return determinant(rows).unsqueeze(1)


def _narrowed(x: Tensor, starts: list[int]) -> Tensor:
    """All voxels but one along each axis, from ``starts`` on."""
    for axis, start in enumerate(starts, start=2):
        x = x.narrow(axis, start, x.shape[axis] - 1)
    return x


def _derivatives(component: Tensor) -> list[Tensor]:
    """Derivative of (B, *spatial) along each axis, 0 along those of one voxel."""
    axes = [axis for axis in range(1, component.ndim) if component.shape[axis] > 1]
    found = dict(zip(axes, torch.gradient(component, dim=axes), strict=True)) if axes else {}
    return [found.get(axis, torch.zeros_like(component)) for axis in range(1, component.ndim)]


def determinant(rows: list[list[Tensor]]) -> Tensor:
    """Determinant of a 2x2 or 3x3 matrix whose entries are tensors of one shape."""
    if len(rows) == 2:
        (a, b), (c, d) = rows
        return a * d - b * c
    (a, b, c), (d, e, f), (g, h, i) = rows
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

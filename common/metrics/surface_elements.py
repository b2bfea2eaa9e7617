# SPDX-License-Identifier: Apache-2.0
"""Surface of a binary mask: one element per voxel corner whose 2^d surrounding voxels are not all alike.

The elements are those of marching cubes (Lorensen and Cline 1987) with every crossing at the middle of its edge,
weighed by their area as the surface-distance metrics of Learn2Reg do (Nikolov et al. 2018, arXiv 1809.04430).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Area vectors of the triangles of one surface element, times eight and without their signs, per neighbour code. These
# are the cases of marching cubes up to rotation, reflection and exchange of inside and outside, which reorder the
# components and nothing else.
_TRIANGLES: dict[int, list[tuple[int, int, int]]] = {
    0: [],
    1: [(1, 1, 1)],
    3: 2 * [(2, 2, 0)],
    6: 2 * [(1, 1, 1)],
    7: [(4, 0, 0), (2, 2, 2), (1, 1, 1)],
    15: 2 * [(4, 0, 0)],
    22: 3 * [(1, 1, 1)],
    23: [(1, 1, 1), (2, 2, 2), (2, 2, 2), (1, 1, 1)],
    24: 2 * [(1, 1, 1)],
    25: [(0, 2, 2), (0, 2, 2), (1, 1, 1)],
    27: [(1, 1, 1), (3, 3, 3), (0, 2, 2), (2, 0, 2)],
    30: [(4, 0, 0), (1, 1, 1), (2, 2, 2), (1, 1, 1)],
    60: 4 * [(2, 2, 0)],
    105: 4 * [(1, 1, 1)],
}
_REACH = 3.0
"""How far, in the smallest voxel size, to look for a neighbour before asking a search tree; 123 offsets in 3D."""


def neighbour_kernel(spatial_dims: int) -> NDArray[np.int32]:
    """Weight of each of the 2^d voxels around a corner in its neighbour code: [[8, 4], [2, 1]] in two dimensions."""
    count = 2**spatial_dims
    return (1 << np.arange(count - 1, -1, -1, dtype=np.int32)).reshape((2,) * spatial_dims)


def neighbour_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Neighbour code of every voxel corner; voxels outside the array count as outside the mask.

    Args:
        mask: (*spatial), bool.

    Returns:
        (*(n + 1 for n in spatial)), uint8: 0 outside, 255 (3D) or 15 (2D) inside, anything else on the surface.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    for axis in reversed(range(mask.ndim)):
        factor = np.uint8(1 << (1 << (mask.ndim - 1 - axis)))
        lower = codes[(slice(None),) * axis + (slice(None, -1),)]
        upper = codes[(slice(None),) * axis + (slice(1, None),)]
        codes = lower * factor + upper
    return codes


@lru_cache(maxsize=64)
def surface_element_areas(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area (length in two dimensions) of the surface element of every neighbour code.

    Args:
        spacing: voxel size along each array axis; two or three positive values.

    Returns:
        (256,) for three axes, (16,) for two, float64, in the square of the spacing's unit (its unit in two dimensions).
    """
    if len(spacing) == 2:
        areas = _contour_lengths(*spacing)
    else:
        s0, s1, s2 = spacing
        faces = np.array([s1 * s2, s0 * s2, s0 * s1])
        areas = np.array([np.linalg.norm(t * faces, axis=-1).sum() for t in _triangles_of_all_codes()])
    areas.flags.writeable = False
    return areas


def _contour_lengths(s0: float, s1: float) -> NDArray[np.float64]:
    """Lengths of the sixteen contour elements: cut corners, and straight lines along one axis."""
    lengths = np.full(16, 0.5 * np.hypot(s0, s1))
    lengths[[0, 15]] = 0.0
    lengths[[6, 9]] = np.hypot(s0, s1)
    lengths[[3, 12]] = s1
    lengths[[5, 10]] = s0
    return lengths


@lru_cache(maxsize=1)
def _triangles_of_all_codes() -> list[NDArray[np.float64]]:
    """Area vectors (triangles, 3) of all 256 codes, unfolded from the cases by the symmetries of the cube."""
    kernel = neighbour_kernel(3)
    found: list[Any] = [None] * 256
    for code, triangles in _TRIANGLES.items():
        vectors = np.array(triangles, np.float64).reshape(-1, 3) / 8
        cube = (code & kernel) > 0
        for order, flips in product(permutations(range(3)), product((1, -1), repeat=3)):
            turned = cube.transpose(order)[tuple(slice(None, None, step) for step in flips)]
            for inside in (turned, ~turned):
                found[int((inside * kernel).sum())] = vectors[:, list(order)]
    return found


def quantile_by_area(distances: NDArray[np.float64], areas: NDArray[np.float64], fraction: float) -> float:
    """Smallest distance within which ``fraction`` of the area lies.

    Args:
        distances: (elements,), not empty.
        areas: (elements,).
        fraction: in [0, 1]; 1 gives the maximum.
    """
    order = np.argsort(distances, kind="stable")
    covered = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order[min(int(np.searchsorted(covered, fraction)), len(order) - 1)]])


def distances_to(
    elements: NDArray[np.bool_], points: NDArray[np.bool_], spacing: tuple[float, ...]
) -> NDArray[np.float64]:
    """Euclidean distance from each of ``points`` to the nearest of ``elements``.

    Registered surfaces lie close together: most points find an element among their nearest neighbours, tried in order
    of distance, and only the rest need a search tree. A distance transform would visit every voxel of the box.

    Args:
        elements: (*corners), bool.
        points: (*corners), bool.
        spacing: voxel size along each axis.

    Returns:
        (number of points,) in the order of the array, float64; infinite when there is no element.
    """
    offsets, lengths = _nearby_offsets(spacing)
    margin = np.abs(offsets).max(axis=0)
    padded = np.pad(elements, [(m, m) for m in margin])
    strides = np.array(padded.strides)  # in elements: a bool takes one byte
    places = np.argwhere(points) + margin
    distances = np.full(len(places), np.inf)
    if not elements.any():
        return distances
    flat, open_places, open_index = padded.ravel(), places @ strides, np.arange(len(places))
    for step, length in zip(offsets @ strides, lengths, strict=True):
        hit = flat[open_places + step]
        distances[open_index[hit]] = length
        open_places, open_index = open_places[~hit], open_index[~hit]
        if not len(open_index):
            return distances
    distances[open_index] = _tree_distances(np.argwhere(padded), places[open_index], np.array(spacing))
    return distances


@lru_cache(maxsize=64)
def _nearby_offsets(spacing: tuple[float, ...]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Grid offsets (count, d) up to ``_REACH`` smallest voxel sizes long, shortest first, and their lengths."""
    reach = _REACH * min(spacing)
    spans = [np.arange(-int(reach / s), int(reach / s) + 1) for s in spacing]
    offsets = np.stack(np.meshgrid(*spans, indexing="ij"), axis=-1).reshape(-1, len(spacing))
    lengths = np.sqrt(((offsets * np.array(spacing)) ** 2).sum(axis=1))
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] <= reach]
    return offsets[order], lengths[order]


def _tree_distances(
    elements: NDArray[np.int64], points: NDArray[np.int64], spacing: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance from each of ``points`` (count, d) to the nearest of ``elements`` (count, d), both voxel indices."""
    from scipy.spatial import cKDTree

    tree = cKDTree(elements * spacing, compact_nodes=False, balanced_tree=False)
    _, nearest = tree.query(points * spacing)
    return np.sqrt((((points - elements[nearest]) * spacing) ** 2).sum(axis=1))

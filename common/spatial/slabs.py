# SPDX-License-Identifier: Apache-2.0
"""Volumes a few planes at a time: what is made on the way stays in the cache, and never is as large as the volume."""

from __future__ import annotations

from collections.abc import Iterator

_SLAB_VOXELS = 1 << 18
"""Voxels per slab: nine derivatives in single precision stay in the processor's cache."""


def slab_ranges(start: int, stop: int, plane_voxels: int) -> Iterator[tuple[int, int]]:
    """Cut the planes [start, stop) of an image's first axis into slabs of a size that suits the cache.

    Args:
        start: first plane.
        stop: end plane.
        plane_voxels: voxels of a plane, of all images that are worked on at once.

    Yields:
        First plane and end plane of each slab.
    """
    step = max(1, _SLAB_VOXELS // max(1, plane_voxels))
    for first in range(start, stop, step):
        yield first, min(first + step, stop)

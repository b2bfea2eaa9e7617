# SPDX-License-Identifier: Apache-2.0
"""Voxel sizes as metrics take them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.checks import InputError


def voxel_sizes(spacing: Sequence[float] | None, dims: int) -> tuple[float, ...]:
    """``spacing`` along each of ``dims`` array axes, 1 where it is None.

    Raises:
        InputError: when there is another number of sizes, or one is not positive and finite.
    """
    sizes = (1.0,) * dims if spacing is None else tuple(float(size) for size in spacing)
    if len(sizes) != dims or not all(0 < size < math.inf for size in sizes):
        raise InputError(f"spacing is {spacing}; it must be {dims} positive voxel sizes, one per array axis.")
    return sizes

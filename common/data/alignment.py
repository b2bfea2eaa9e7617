# SPDX-License-Identifier: Apache-2.0
"""Kept for code written for earlier releases, which knew the affine alignment by this path and in this order."""

from __future__ import annotations

from torch import Tensor

from common.alignment import affine
from common.alignment.affine import Alignment
from common.spatial.world import Grid


def align(
    fixed: Tensor,
    fixed_grid: Grid,
    moving: Tensor,
    moving_grid: Grid,
    *,
    fixed_name: str = "the fixed image",
    moving_name: str = "the moving image",
) -> Alignment:
    """:func:`common.alignment.affine.align` with the fixed scan first, as releases up to 0.2 had it."""
    return affine.align(moving, moving_grid, fixed, fixed_grid, moving_name=moving_name, fixed_name=fixed_name)

# SPDX-License-Identifier: Apache-2.0
"""How alike two scans are before anything is registered: a look that costs milliseconds, to choose among many."""

from __future__ import annotations

import torch
from torch import Tensor

from common.alignment.mutual_information import BlockScan, ScanPair
from common.spatial.world import Grid

_SIDE = 20
"""Blocks along an average side of a scan, and the cube root of the number of points that are compared."""


def look(image: Tensor, grid: Grid, name: str) -> BlockScan:
    """What is kept of a scan to compare it with others: block means, some thousand numbers.

    Args:
        image: (1, *grid.shape).
        grid: where its voxels lie.
        name: what messages call the scan.

    Raises:
        InputError: when there is nothing but one value.
    """
    size = torch.tensor(grid.spacing[: grid.dims]) * torch.tensor(grid.shape[: grid.dims])
    return BlockScan(image, grid, float(size.double().log().mean().exp()) / _SIDE, name)


def likeness(moving: BlockScan, fixed: BlockScan) -> float:
    """Informational correlation of two scans whose centres of mass are laid onto each other, in [0, 1].

    It asks for no contrast, as in :func:`common.alignment.affine.align`; orientation and size are left as they are. 0
    also where they hardly meet, or one is flat and one is not.
    """
    if moving.flat != fixed.flat:
        return 0.0
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = moving.centre_of_mass() - fixed.centre_of_mass()
    value, _ = ScanPair(moving, fixed, _SIDE).similarity(shift)
    return value

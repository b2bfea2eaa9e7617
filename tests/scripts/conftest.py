# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

SPACING = (1.5, 1.0, 2.5)


def oblique_affine(flip: bool = True) -> np.ndarray:
    """Voxels to millimetres with unequal spacing, two axes swapped, turned by 20 degrees and, if wanted, mirrored."""
    c, s = np.cos(np.deg2rad(20)), np.sin(np.deg2rad(20))
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])[:, [1, 0, 2]] * ([1, -1, 1] if flip else [-1, -1, 1])
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING
    affine[:3, 3] = (-31.0, 12.5, 7.0)
    return affine

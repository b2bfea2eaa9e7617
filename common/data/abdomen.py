# SPDX-License-Identifier: Apache-2.0
"""Abdominal CT as EOIR prepares it (Learn2Reg 2020 task 3, 192 x 160 x 256 at 2 mm to half of that)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

HU_WINDOW = (-500.0, 800.0)


def prepare_abdomen(hu: np.ndarray, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """Window a CT to [0, 1] and halve it.

    Args:
        hu: Hounsfield units (X, Y, Z).
        labels: label map (X, Y, Z) or None.

    Returns:
        Image float32 on half the grid, zoomed with quadratic splines and not clipped again, so that values slightly
        outside [0, 1] remain; labels on the same grid by nearest neighbour, in their own dtype.
    """
    low, high = HU_WINDOW
    image = (np.clip(np.asarray(hu, np.float32), low, high) - low) / (high - low)
    half = ndimage.zoom(image, 0.5, order=2).astype(np.float32)
    return half, None if labels is None else ndimage.zoom(np.asarray(labels), 0.5, order=0)

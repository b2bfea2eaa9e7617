# SPDX-License-Identifier: Apache-2.0
"""Uniform cubic B-splines by their coefficients, as registration tools store them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def cubic_spline(coefficients: NDArray[np.floating], places: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    r"""Evaluate :math:`\sum_m \beta(t - m) c_m` on a lattice, axis after axis; what lies outside counts as 0.

    Args:
        coefficients: (X, Y, Z, C).
        places: t of the lattice along each of the three axes, in indices of the coefficients.

    Returns:
        (*lengths of places, C).
    """
    result = np.asarray(coefficients, dtype=np.float32)
    for axis, place in enumerate(places):
        distance = np.abs(np.asarray(place)[:, None] - np.arange(result.shape[axis]))
        near, far = 2 / 3 - distance**2 + distance**3 / 2, (2 - distance) ** 3 / 6
        weights = np.where(distance < 1, near, np.where(distance < 2, far, 0)).astype(np.float32)
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return result

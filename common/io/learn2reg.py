# SPDX-License-Identifier: Apache-2.0
"""Half-resolution displacement fields of the Learn2Reg 2021 OASIS task."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from common.checks import InputError


def to_half_resolution(ddf: NDArray[Any], mode: str = "nearest", dtype: DTypeLike = np.float16) -> NDArray[Any]:
    """Field of half the size as the challenge takes it: ``scipy.ndimage.zoom(0.5, order=2)`` per channel.

    The values stay voxels of the *full* grid: they are not halved.

    Args:
        ddf: (d, *spatial), in voxels of the full grid.
        mode: value outside the array. The published scripts use "constant", with which rounding turns the last plane of
            some lengths (28, 30, 32, 48, 56) to zero; "nearest" is identical elsewhere and keeps it.
        dtype: of the result; submissions are float16.

    Returns:
        (d, *(round(n / 2) for n in spatial)).

    Raises:
        InputError: when ``ddf`` is not (2, H, W) or (3, D, H, W), or has an axis of one voxel.
    """
    if min(ddf.shape[1:]) < 2:
        raise InputError(
            f"A field of shape {ddf.shape} has no half: the challenge's form needs 2 voxels along each axis."
        )
    return _zoomed(ddf, 0.5, mode).astype(dtype)


def from_half_resolution(half: NDArray[Any], mode: str = "constant") -> NDArray[np.float32]:
    """Full-size field that the evaluation makes of a half-size one: ``scipy.ndimage.zoom(2, order=2)`` per channel.

    Args:
        half: (d, *spatial), values in voxels of the full grid.
        mode: as in :func:`to_half_resolution`; "constant" is the evaluation's own.

    Returns:
        (d, *(2 * n for n in spatial)), float32.

    Raises:
        InputError: when ``half`` is not (2, H, W) or (3, D, H, W).
    """
    return _zoomed(half, 2.0, mode)


def _zoomed(ddf: NDArray[Any], factor: float, mode: str) -> NDArray[np.float32]:
    from scipy.ndimage import zoom

    if ddf.ndim not in (3, 4) or ddf.shape[0] != ddf.ndim - 1:
        raise InputError(f"The field has shape {ddf.shape}; expected channel first, (2, H, W) or (3, D, H, W).")
    return np.stack([zoom(channel.astype(np.float32), factor, order=2, mode=mode) for channel in ddf])

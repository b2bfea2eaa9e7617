# SPDX-License-Identifier: Apache-2.0
"""Label values of files as integers: any whole numbers, each kept exactly."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError

_LOGGER = logging.getLogger(__name__)
_TOLERANCE = 1e-3
_TYPES = (np.uint8, np.int16, np.int32, np.int64)
"""What torch computes with."""
_SINGLE = 1 << 24
"""From here on single precision leaves whole numbers out."""


def labels_of(values: np.ndarray, path: str | Path) -> Tensor:
    """Labels (*spatial) of an array of any numeric type, in the first of uint8, int16, int32 and int64 that holds all.

    A warning is logged of numbers so large that single precision, which they are stored in, has rounded them.

    Args:
        values: whole numbers, 0 for background.
        path: whose they are, for messages.

    Raises:
        InputError: when values are no whole numbers, or beyond int64.
    """
    if values.dtype.kind not in "biu":
        values = _whole(values, path)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for kind in _TYPES:
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return torch.from_numpy(np.array(values, dtype=kind, order="C"))
    raise InputError(f"The label map {path} has values from {low} to {high}; labels end at {np.iinfo(np.int64).max}.")


def _whole(values: np.ndarray, path: str | Path) -> np.ndarray:
    rounded = np.rint(values)
    # Neither NaN nor infinity is close to anything.
    with np.errstate(invalid="ignore"):
        is_whole = bool((np.abs(values - rounded) <= _TOLERANCE).all())
    if not is_whole:
        raise InputError(
            f"The label map {path} has values that are no integers: is it an image? Resample label maps with nearest "
            "neighbour."
        )
    largest = float(np.abs(rounded).max(initial=0))
    if values.dtype.itemsize <= 4 and largest > _SINGLE:
        _LOGGER.warning(
            "The label map %s holds labels up to %.0f in single precision, which cannot tell neighbouring numbers "
            "above %d apart: save it as integers.",
            path, largest, _SINGLE,
        )  # fmt: skip
    return rounded

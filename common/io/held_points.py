# SPDX-License-Identifier: Apache-2.0
"""Landmarks in memory, which are taken like those of a table."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.checks import InputError


@dataclass(frozen=True, eq=False, repr=False)
class HeldPoints:
    """Landmarks that no file holds; as a text they are their name.

    Attributes:
        points: (N, d) float64.
        name: for messages.
    """

    points: np.ndarray
    name: str

    def __str__(self) -> str:
        return self.name


def points_of(source: Any, name: str) -> HeldPoints | str:
    """Landmarks as they are read further on: the text of a path, or points that were given as such.

    Args:
        source: a path, or (N, 2) or (N, 3) numbers.
        name: for messages.

    Raises:
        InputError: for points of another shape, or that are no finite numbers.
    """
    if isinstance(source, str | os.PathLike):
        return os.path.expanduser(os.fspath(source))
    try:
        points = np.array(source, dtype=np.float64)
    except (TypeError, ValueError):
        points = np.zeros(0)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise InputError(f"{name} has to be the path of a file, or (N, 2) or (N, 3) finite numbers.")
    return HeldPoints(points, name)

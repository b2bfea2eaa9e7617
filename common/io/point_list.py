# SPDX-License-Identifier: Apache-2.0
"""The points of a file, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PointList:
    """Landmarks as a file has them.

    Attributes:
        points: (N, d), float64.
        coordinates: "ras", "lps" or "voxel" where the file says it, else None.
        labels: one for each point, empty where it has none.
        text: the same file with other points in the same coordinates.
    """

    points: Tensor
    coordinates: str | None
    labels: list[str]
    text: Callable[[Tensor], str]

# SPDX-License-Identifier: Apache-2.0
"""Landmarks on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError


def read_landmarks(path: str | Path, spatial_dims: int = 3) -> Tensor:
    """Read the points of a Learn2Reg CSV: one point a line, voxel coordinates separated by commas, no header.

    Args:
        path: the file.
        spatial_dims: coordinates per point.

    Returns:
        (N, spatial_dims), float64.

    Raises:
        InputError: when the file is missing, empty, or a line holds anything else; the line is named.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a CSV of landmarks, {spatial_dims} voxel coordinates a line.")
    points: list[list[float]] = []
    for index, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            point = [float(cell) for cell in line.split(",")]
        except ValueError:
            point = []
        if len(point) != spatial_dims or not np.isfinite(point).all():
            raise InputError(
                f"{path}, line {index}: {line.strip()[:60]!r} is not {spatial_dims} voxel coordinates separated by "
                "commas (Learn2Reg's files have no header)."
            )
        points.append(point)
    if not points:
        raise InputError(f"{path} holds no landmark: {spatial_dims} voxel coordinates a line are expected.")
    return torch.tensor(points, dtype=torch.float64)

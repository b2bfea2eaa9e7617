# SPDX-License-Identifier: Apache-2.0
"""Landmarks of a subject, on whatever grid its image has come to."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from common.checks import InputError
from common.data.readers.listing import LANDMARK_COORDINATES, LANDMARKS
from common.io.held_points import HeldPoints
from common.io.landmarks import in_space, read_landmarks
from common.io.nifti import read_grid
from common.spatial.world import Grid, between_grids

_logger = logging.getLogger(__name__)


class LoadLandmarksd(MapTransform):
    """Read landmarks and give them in voxels of the image as it is now, (N, d) float64; put it last.

    Files give them in voxels of the image's own file, or in millimetres of its world, in which they are carried to the
    grid that the image was resampled to or cropped. Tables are in voxels that count from 0, unless the subject's
    "landmark_coordinates" or the names of their columns say something else, see :mod:`common.io.landmarks`.

    Args:
        keys: entries with the path of a file, or points in memory.
        image_key: the image that they belong to, of a file with a header.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: naming the file, when it holds no such points, or more than a tenth of them lie outside of the
            image in its file.
    """

    def __init__(
        self, keys: KeysCollection = LANDMARKS, image_key: str = "image", allow_missing_keys: bool = True
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Replace the paths under ``keys`` by points; the other entries stay."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            path = subject[key] if isinstance(subject[key], HeldPoints) else Path(subject[key])
            image = subject[self.image_key]
            own = read_grid(image.meta["filename_or_obj"])
            grid = Grid.of(image.shape[1:], image.affine)
            points = read_landmarks(path, own.dims, own, str(subject.get(LANDMARK_COORDINATES, "voxel")))
            to_grid = between_grids(moving=grid, fixed=own)
            subject[key] = (in_space(points) @ to_grid[:3, :3].T + to_grid[:3, 3])[:, : grid.dims]
            _tell_of_lost(path, subject[key], grid)
        return subject


def check_correspondence(moving: Tensor, fixed: Tensor, moving_file: str, fixed_file: str) -> None:
    """Refuse two lists of points of which row n cannot correspond to row n.

    Args:
        moving: (N, d).
        fixed: the same shape.
        moving_file: where they come from.
        fixed_file: likewise.

    Raises:
        InputError: naming the files.
    """
    if moving.shape != fixed.shape:
        raise InputError(
            f"{moving_file} holds {len(moving)} landmarks and {fixed_file} {len(fixed)}, but line n of the one has to "
            "correspond to line n of the other: take both from one release."
        )


def _tell_of_lost(path: Path | HeldPoints, points: Tensor, grid: Grid) -> None:
    last = torch.tensor(grid.shape[: grid.dims], dtype=points.dtype) - 1
    lost = int(((points < -0.5) | (points > last + 0.5)).any(1).sum())
    if lost:
        _logger.warning(
            "%s: %d of %d landmarks lie outside of the part of the image that is registered, where nothing moves: "
            "enlarge it with --spatial_size.",
            *(path, lost, len(points)),
        )

# SPDX-License-Identifier: Apache-2.0
"""Landmarks on disk: tables and the files of 3D Slicer, in voxels or millimetres.

DIR-Lab's texts (``copd1_300_iBH_xyz_r1.txt``) are tables of voxels that count from 1, Learn2Reg's CSV of those from 0.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from common.checks import InputError
from common.io.held_points import HeldPoints
from common.io.landmark_tables import SUFFIXES as TABLES
from common.io.landmark_tables import digits, read_table_points, table_text
from common.io.nifti import check_is_file
from common.io.point_list import PointList
from common.io.slicer_markups import SUFFIXES as MARKUPS
from common.io.slicer_markups import fcsv_text, markups_text, read_fcsv, read_markups
from common.spatial.world import Grid

COORDINATES = ("ras", "lps", "voxel", "voxel_from_1")
VOXELS = {"voxel": 0.0, "voxel_from_1": 1.0}
"""Coordinates that an image has to tell the place of, and what they call its first voxel."""
POINT_SUFFIXES = (*TABLES, *MARKUPS)
_LOGGER = logging.getLogger(__name__)
_MARGIN = 1.0
"""Voxels that a landmark may lie outside of its image, by rounding and by the rim of the outermost voxels."""
_FEW, _MOST = 0.1, 0.95
_NAMES = {
    "ras": "RAS millimetres",
    "lps": "LPS millimetres",
    "voxel": "voxels",
    "voxel_from_1": "voxels counted from 1",
}
_COLUMNS = {"ras": "r, a, s", "lps": "l, p, s", "voxel": "i, j, k"}


def read_points(path: str | Path | HeldPoints, spatial_dims: int = 3) -> PointList:
    """Read a table of landmarks or a file of 3D Slicer (.fcsv, .mrk.json).

    Args:
        path: the file; points in memory are taken like those of a table without names of columns.
        spatial_dims: coordinates per point of a table.

    Raises:
        InputError: when the file is missing or holds anything else; the line is named.
    """
    if isinstance(path, HeldPoints):
        return _listed(path, spatial_dims)
    path = Path(path)
    check_is_file(path)
    name = path.name.lower()
    if name.endswith(".fcsv"):
        return read_fcsv(path)
    return read_markups(path) if name.endswith(".json") else read_table_points(path, spatial_dims)


def _listed(held: HeldPoints, spatial_dims: int) -> PointList:
    count, dims = held.points.shape
    if dims < spatial_dims:
        raise InputError(f"{held} has {dims} coordinates per point, but the image has {spatial_dims} dimensions.")
    return PointList(torch.from_numpy(held.points), None, [""] * count, str)


def read_landmarks(
    path: str | Path | HeldPoints, spatial_dims: int = 3, grid: Grid | None = None, coordinates: str = "voxel"
) -> Tensor:
    """Read landmarks as voxels of their image.

    Args:
        path: see :func:`read_points`.
        spatial_dims: coordinates per point.
        grid: of the image; needed for millimetres, and to notice coordinates that were taken for others.
        coordinates: of tables, one of :data:`COORDINATES`; a file that says its own keeps to them.

    Returns:
        (N, spatial_dims), float64; the first voxel is 0. Of two dimensions the first two coordinates of a file of 3D
        Slicer count.

    Raises:
        InputError: as :func:`read_points`; when there is no landmark, or more than a tenth of the points lie outside
            of the image.
    """
    found = read_points(path, spatial_dims)
    if not len(found.points):
        raise InputError(f"{path} holds no landmark: {spatial_dims} coordinates a line are expected.")
    stated, points = found.coordinates or coordinates, in_space(found.points[:, :spatial_dims])
    if grid is not None:
        check_coordinates(path, points, stated, grid, said=found.coordinates is not None, strict=True)
    if stated in VOXELS:
        return (points - VOXELS[stated])[:, :spatial_dims]
    if grid is None:
        raise InputError(f"{path} holds {_NAMES[stated]}, whose voxels an image has to tell.")
    return from_world(points * _signs(stated), grid)[:, :spatial_dims]


def in_space(points: Tensor) -> Tensor:
    """Points (N, 2) of an image of two dimensions as (N, 3), the third coordinate 0; points (N, 3) as they are."""
    return torch.cat([points, torch.zeros(len(points), 3 - points.shape[1], dtype=points.dtype)], dim=1)


def to_world(points: Tensor, coordinates: str, grid: Grid | None) -> Tensor:
    """Points (N, 3) of any coordinates as RAS millimetres.

    Raises:
        InputError: when the coordinates are unknown, or voxels of no image.
    """
    if coordinates not in VOXELS:
        return points * _signs(coordinates)
    known = _of_an_image(grid)
    voxels = points - VOXELS[coordinates]
    return in_space(voxels[:, : known.dims]) @ known.affine[:3, :3].T + known.affine[:3, 3]


def to_coordinates(points: Tensor, coordinates: str, grid: Grid | None) -> Tensor:
    """Points (N, 3) in RAS millimetres in any coordinates: the other way of :func:`to_world`, which raises alike."""
    if coordinates not in VOXELS:
        return points * _signs(coordinates)
    return from_world(points, _of_an_image(grid)) + VOXELS[coordinates]


def from_world(points: Tensor, grid: Grid) -> Tensor:
    """Points (N, 3) in RAS millimetres as voxels of a grid."""
    inverse = torch.linalg.inv(grid.affine)
    return points @ inverse[:3, :3].T + inverse[:3, 3]


def check_coordinates(
    path: str | Path | HeldPoints,
    points: Tensor,
    coordinates: str,
    grid: Grid,
    said: bool = False,
    strict: bool = False,
) -> None:
    """Refuse points that lie in their image only if their numbers are something else than was stated.

    Args:
        path: for the message.
        points: (N, 3), as the file has them; of a file of 3D Slicer in RAS.
        coordinates: as they are going to be read.
        grid: of the image.
        said: whether the file says its coordinates itself.
        strict: whether points that are inside in no coordinates are refused as well, not only warned of.

    Raises:
        InputError: when a tenth of the points lie outside, but (nearly) all inside in other coordinates.
    """
    inside = {name: _inside(from_world(to_world(points, name, grid), grid), grid) for name in COORDINATES}
    count, within = len(points), inside[coordinates]
    if count == 0 or within > (1 - _FEW) * count:
        return
    others = [name for name in COORDINATES if inside[name] >= _MOST * count]
    outside = f"{path}: {count - within} of {count} points lie outside of the image as {_NAMES[coordinates]}"
    if others:
        fitting = " or ".join(f"{inside[name]} of {count} inside as {_NAMES[name]}" for name in others)
        raise InputError(f"{outside}, but {fitting}: {_remedy(others, said)}.")
    sentence = f"{outside}, and in no other coordinates inside"
    if strict:
        raise InputError(f"{sentence}: give the landmarks of this image, before it was resampled or cropped.")
    _LOGGER.warning("%s: do they belong to this image?", sentence)


def points_text(target: str | Path, source: str | Path, found: PointList, moved: Tensor) -> str:
    """Moved points in the format that a name asks for: that of the source where it is one of its kind.

    Args:
        target: name of the result.
        source: name of the file that the points come from.
        found: what it holds.
        moved: (N, d), as they shall stand in a table; RAS millimetres (N, 3) for a file of 3D Slicer.
    """
    kind, before = (_kind(name) for name in (target, source))
    if kind == before:
        return found.text(moved)
    if kind == ".fcsv":
        return fcsv_text(moved, found.labels)
    if kind == ".mrk.json":
        return markups_text(moved, found.labels)
    separator = "\t" if str(target).lower().endswith(".tsv") else ","
    rows = [[label, *map(digits, point)] for label, point in zip(found.labels, moved.tolist(), strict=True)]
    return table_text([["label", *"xyz"[: moved.shape[1]]], *rows], separator)


def is_markups(path: str | Path) -> bool:
    """Whether a name is that of a file of 3D Slicer, which says its own coordinates."""
    return _kind(path) != "table"


def _kind(path: str | Path) -> str:
    name = str(path).lower()
    return next((suffix for suffix in MARKUPS if name.endswith(suffix)), "table")


def _remedy(others: list[str], said: bool) -> str:
    """What to do about points that are in one of these coordinates."""
    if said:
        return "correct what the file says of its coordinates"
    columns = [_COLUMNS[name] for name in others if name in _COLUMNS]
    named = f", or in a data set name the columns {' or '.join(columns)} in a first line" if columns else ""
    return f"state --coordinates {' or '.join(others)}{named}"


def _of_an_image(grid: Grid | None) -> Grid:
    if grid is None:
        raise InputError("Landmarks in voxels need the images that they belong to: give --reference and --target.")
    return grid


def _inside(voxels: Tensor, grid: Grid) -> int:
    last = torch.tensor(grid.shape, dtype=torch.float64) - 1
    return int(((voxels >= -_MARGIN) & (voxels <= last + _MARGIN)).all(1).sum())


def _signs(coordinates: str) -> Tensor:
    signs = {"ras": (1.0, 1.0, 1.0), "lps": (-1.0, -1.0, 1.0)}
    if coordinates not in signs:
        raise InputError(f"Coordinates are {coordinates!r}; expected one of {', '.join(COORDINATES)}.")
    return torch.tensor(signs[coordinates], dtype=torch.float64)

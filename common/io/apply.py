# SPDX-License-Identifier: Apache-2.0
"""A saved transform applied to files: images, label maps and landmarks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.files import write_bytes
from common.io.formats.writer import write_as
from common.io.header_forms import copy_world
from common.io.nifti import check_is_file, grid_of, open_nifti, read_grid, save_nifti, voxels_of
from common.io.tables import read_table
from common.io.transforms import read_transform
from common.spatial.labels import warp_labels
from common.spatial.transform import Transform
from common.spatial.world import Grid, displacement_to_moving, warp_within

COORDINATES = ("ras", "lps", "voxel")
INVERSE = "inverse:"
"""Before the name of a transform that is to be applied backwards."""
_WHOLE = 1e-3
_AXES = ("x", "y", "z")


class Chain:
    """Several saved transforms in the order in which a point of the reference goes through them.

    That is the order of ``antsApplyTransforms``, whose manual looks at it from the other end: the moving image goes
    through the last one first.

    Args:
        names: files, each with :data:`INVERSE` before it where it is meant backwards.
        reference: grid on which the chain starts, for files that state none.
        conventions: one for all files, or one for each, see :func:`common.io.fields.read_field`.
        moving: grid on which the chain ends, for FSL's files.

    Raises:
        InputError: when a file cannot be read, or there are more or fewer conventions than files.
    """

    def __init__(
        self,
        names: Sequence[str],
        reference: Grid | None,
        conventions: Sequence[str] = ("auto",),
        moving: Grid | None = None,
    ) -> None:
        stated = list(conventions) * len(names) if len(conventions) == 1 else list(conventions)
        if len(stated) != len(names):
            raise InputError(f"{len(names)} transforms have {len(stated)} conventions: state one, or one for each.")
        self._links: list[tuple[Transform, bool]] = []
        for name, convention in zip(names, stated, strict=True):
            backwards = name.startswith(INVERSE)
            # A file between two others belongs to scans that are not given. Backwards, they change their parts.
            fixed, other = (reference, moving if len(names) == 1 else None)
            if backwards and len(names) == 1:
                fixed, other = (moving or reference, reference)
            link = read_transform(name.removeprefix(INVERSE), fixed, convention, other)
            self._links.append((link, backwards))

    def transform(self) -> Transform:
        """The chain as one transform, fields that are meant backwards inverted."""
        result = Transform(())
        for link, backwards in self._links:
            result = result.then(link.inverse() if backwards else link)
        return result

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3), RAS+ millimetres, go; fields that are meant backwards are solved point by point."""
        for link, backwards in self._links:
            points = link.inverse_points(points) if backwards else link.points(points)
        return points


def save_transform(
    target: str | Path, form: str, chain: Chain, reference: str | Path, moving: str | Path | None = None
) -> None:
    """Write a chain as one field on a reference grid, in the form of a tool.

    Args:
        target: .nii.gz or .nii.
        form: a key of :data:`common.io.formats.writer.FORMS`.
        chain: from the reference to the moving scan.
        reference: NIfTI, of which only the header is used.
        moving: the same of the moving scan, for FSL.

    Raises:
        InputError: when a file cannot be read or written, or the form needs the moving scan.
    """
    fixed = read_grid(reference)
    write_as(target, form, chain.transform().ddf(fixed), fixed, None if moving is None else read_grid(moving))


def warp_file(
    source: str | Path,
    target: str | Path,
    chain: Chain,
    reference: str | Path,
    is_label: bool = False,
    outside: float | None = None,
) -> None:
    """Resample an image or a label map on a reference grid through a chain of transforms.

    Args:
        source: the moving scan, NIfTI.
        target: the result, .nii.gz or .nii, with the header of the reference.
        chain: from the reference to the moving scan.
        reference: NIfTI, of which only the header is used.
        is_label: nearest voxel, of the type of the source and 0 outside; else linear, float32.
        outside: value outside the moving scan, by ITK's rule half a voxel beyond its outermost centres; None takes its
            smallest one. Labels are 0 from the outermost centres on, as in the evaluation.

    Raises:
        InputError: when a file cannot be read or written, or the label map holds no whole numbers.
    """
    pattern = open_nifti(reference)
    fixed = grid_of(pattern, reference)
    file = open_nifti(source)
    moving = grid_of(file, source)
    place = displacement_to_moving(moving, fixed, chain.transform().ddf(fixed))
    if is_label:
        labels, kind = _labels(file, source)
        by_header = not moving.same_as(fixed)
        warped = warp_labels(labels.view(1, 1, *moving.shape), place, by_header)[0, 0].numpy().astype(kind)
    else:
        image = torch.from_numpy(voxels_of(file, source)).view(1, 1, *moving.shape)
        warped = warp_within(image, place, outside=_lowest(image, source) if outside is None else outside)[0, 0].numpy()
    save_nifti(target, _like(pattern, warped, fixed))


def move_landmarks(
    source: str | Path,
    target: str | Path,
    chain: Chain,
    coordinates: str = "ras",
    start: str | Path | None = None,
    end: str | Path | None = None,
) -> int:
    """Send the landmarks of a CSV through a chain of transforms.

    Args:
        source: CSV with a header that has x, y and z; other columns are kept.
        target: CSV of the same columns.
        chain: transforms of points.
        coordinates: of both files: "ras" or "lps" millimetres, or "voxel" indices.
        start: NIfTI in whose voxels the points of ``source`` are; for "voxel" only.
        end: NIfTI in whose voxels those of ``target`` shall be; for "voxel" only.

    Returns:
        Number of landmarks.

    Raises:
        InputError: when the table lacks columns or numbers, a grid is missing, or the result cannot be written.
    """
    check_is_file(Path(source))
    names, lines = read_table(source)
    columns = [_column(names, axis, source) for axis in _AXES]
    values = [_numbers(row, columns, source, line) for line, row in lines.items()]
    points = torch.tensor(values, dtype=torch.float64).view(-1, 3)
    moved = _from_ras(chain.points(_to_ras(points, coordinates, start)), coordinates, end)
    rows = list(lines.values())
    for row, point in zip(rows, moved.tolist(), strict=True):
        row.update({column: f"{value:.10g}" for column, value in zip(columns, point, strict=True)})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(target, text.getvalue().encode())
    return len(rows)


def _labels(file: Any, path: str | Path) -> tuple[Tensor, np.dtype]:
    """Label map as int32 and the type that its file has, or int32 where that is no integer type."""
    kind = file.get_data_dtype()
    slope, intercept = file.header.get_slope_inter()
    is_plain = kind.kind in "iu" and slope in (None, 1.0) and intercept in (None, 0.0)
    # Whole numbers are read as they are: in double precision they take eight times the memory.
    values = voxels_of(file, path, kind if is_plain else np.float64)
    if not is_plain:
        whole = np.rint(values)
        if not np.isfinite(values).all() or np.abs(values - whole).max() > _WHOLE:
            raise InputError(f"{path} holds values that are not whole numbers: is it an image? Give it as --moving.")
        values = whole
    if max(-int(values.min()), int(values.max())) > np.iinfo(np.int32).max:
        raise InputError(f"{path} holds labels beyond {np.iinfo(np.int32).max}.")
    return torch.from_numpy(values.astype(np.int32)), kind if is_plain else np.dtype(np.int32)


def _lowest(image: Tensor, path: str | Path) -> float:
    finite = image[torch.isfinite(image)]
    if not finite.numel():
        raise InputError(f"{path} holds no finite value: there is nothing to warp.")
    return float(finite.min())


def _like(pattern: Any, values: np.ndarray, grid: Grid) -> Any:
    """A file of new values with the header of another, and its place in the world in both of its forms."""
    header = pattern.header.copy()
    header.extensions.clear()
    header.set_data_dtype(values.dtype)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0
    header["descrip"] = b""
    file = type(pattern)(values, None, header)
    copy_world(file, pattern, grid.affine.numpy())
    return file


def _column(names: Sequence[str], axis: str, path: str | Path) -> str:
    found = [name for name in names if name.strip().lower() == axis]
    if len(found) != 1:
        raise InputError(f"{path} has the columns {', '.join(names)}; expected x, y and z, once each.")
    return found[0]


def _numbers(row: Mapping[str, str], columns: Sequence[str], path: str | Path, line: int) -> list[float]:
    try:
        values = [float(row[column]) for column in columns]
    except ValueError:
        values = []
    if not values or not np.isfinite(values).all():
        raise InputError(f"{path}, line {line}: x, y and z have to be numbers.")
    return values


def _to_ras(points: Tensor, coordinates: str, path: str | Path | None) -> Tensor:
    matrix = _frame(coordinates, path)
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _from_ras(points: Tensor, coordinates: str, path: str | Path | None) -> Tensor:
    matrix = torch.linalg.inv(_frame(coordinates, path))
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _frame(coordinates: str, path: str | Path | None) -> Tensor:
    """(4, 4): from the coordinates of a table to RAS millimetres."""
    if coordinates == "voxel":
        if path is None:
            raise InputError("Landmarks in voxels need the images that they belong to: give --reference and --target.")
        return read_grid(path).affine
    signs = {"ras": (1.0, 1.0, 1.0, 1.0), "lps": (-1.0, -1.0, 1.0, 1.0)}
    if coordinates not in signs:
        raise InputError(f"Coordinates are {coordinates!r}; expected one of {', '.join(COORDINATES)}.")
    return torch.diag(torch.tensor(signs[coordinates], dtype=torch.float64))

# SPDX-License-Identifier: Apache-2.0
"""A saved transform applied to files: images, label maps and landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.files import write_bytes
from common.io.formats.writer import write_as
from common.io.header_forms import copy_world
from common.io.label_values import labels_of
from common.io.landmarks import (
    COORDINATES,
    VOXELS,
    check_coordinates,
    in_space,
    is_markups,
    points_text,
    read_points,
    to_coordinates,
    to_world,
)
from common.io.nifti import grid_of, open_image, read_grid, voxels_of
from common.io.nifti_files import save_nifti
from common.io.png import PNG, write_png
from common.io.transforms import read_transform
from common.spatial.labels import warp_labels
from common.spatial.plane import laid
from common.spatial.transform import Affine, Transform
from common.spatial.world import Grid, displacement_to_moving, warp_within

INVERSE = "inverse:"
"""Before the name of a transform that is to be applied backwards."""


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

    @property
    def flat(self) -> bool:
        """Whether it is one of images of two dimensions."""
        return any(link.flat for link, _ in self._links)

    def domain(self) -> Grid | None:
        """Grid of the field or function that a point meets first, None where there is none or it is not known."""
        if not self._links or self._links[0][1]:
            return None
        first = next(iter(self._links[0][0].stages), None)
        return None if first is None or isinstance(first, Affine) else first.grid

    def points(self, points: Tensor) -> Tensor:
        """Where points (N, 3), RAS+ millimetres, go; fields that are meant backwards are solved point by point.

        Functions are evaluated at the points themselves, also backwards.
        """
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
        source: the moving scan, NIfTI or PNG.
        target: the result, .nii.gz or .nii, with the header of the reference; of two dimensions .png, too.
        chain: from the reference to the moving scan.
        reference: NIfTI or PNG, of which only the grid is used.
        is_label: nearest voxel, of the type of the source and 0 outside; else linear, float32.
        outside: value outside the moving scan, by ITK's rule half a voxel beyond its outermost centres; None takes its
            smallest one. Labels are 0 from the outermost centres on, as in the evaluation.

    Raises:
        InputError: when a file cannot be read or written, the label map holds no whole numbers, or an image of two
            dimensions meets a volume.
    """
    pattern = open_image(reference, is_label=True)
    fixed = grid_of(pattern, reference)
    file = open_image(source, is_label)
    moving = grid_of(file, source)
    if moving.flat != fixed.flat:
        raise InputError(f"{source} is {moving.dims}D, but the reference {reference} is {fixed.dims}D.")
    transform = chain.transform()
    if is_label:
        labels, kind = _labels(file, source)
        warped = warped_labels(labels, moving, transform, fixed).numpy().astype(kind)
    else:
        image = torch.from_numpy(voxels_of(file, source))
        warped = warped_values(image, moving, transform, fixed, str(source), outside).numpy()
    if fixed.flat and str(target).endswith(PNG):
        write_png(target, torch.from_numpy(warped.astype(np.float64)))
    else:
        save_nifti(target, _like(pattern, warped, fixed))


def warped_labels(labels: Tensor, moving: Grid, transform: Transform, fixed: Grid) -> Tensor:
    """A label map on another grid, see :func:`warp_file`.

    Args:
        labels: of the moving grid, integers, of its shape.
        moving: grid of the labels, of as many dimensions as the other.
        transform: fixed world to moving world.
        fixed: grid of the result.

    Returns:
        (*spatial), of the type of ``labels``.
    """
    place = displacement_to_moving(moving, fixed, transform.ddf(fixed))
    by_header = not moving.same_as(fixed)
    return laid(warp_labels(labels.view(1, 1, *moving.shape), place, by_header)[0, 0], fixed.dims)


def warped_values(
    image: Tensor, moving: Grid, transform: Transform, fixed: Grid, name: str, outside: float | None = None
) -> Tensor:
    """An image on another grid, likewise: float32, linear between voxels.

    Args:
        image: of the moving grid, float32, of its shape.
        moving: grid of the image, of as many dimensions as the other.
        transform: fixed world to moving world.
        fixed: grid of the result.
        name: of the image, for messages.
        outside: value outside the moving scan; None takes its smallest one.

    Raises:
        InputError: when no value is finite.
    """
    place = displacement_to_moving(moving, fixed, transform.ddf(fixed))
    image = image.view(1, 1, *moving.shape)
    value = _lowest(image, name) if outside is None else outside
    return laid(warp_within(image, place, outside=value)[0, 0], fixed.dims)


def move_landmarks(
    source: str | Path,
    target: str | Path,
    chain: Chain,
    coordinates: str | None = None,
    start: str | Path | None = None,
    end: str | Path | None = None,
) -> tuple[int, str]:
    """Send the landmarks of a file through a chain of transforms.

    Args:
        source: table or file of 3D Slicer, see :func:`common.io.landmarks.read_points`.
        target: of the same format, or of another by its name; of a table, other columns are kept.
        chain: transforms of points.
        coordinates: of tables, "ras" (default) or "lps" millimetres, or indices of voxels, "voxel" or "voxel_from_1";
            files of 3D Slicer say theirs.
        start: NIfTI to which the points of ``source`` belong; needed for voxels.
        end: NIfTI in whose voxels those of ``target`` shall be; for voxels only.

    Returns:
        Number of landmarks, and the coordinates of the result, "slicer" where its file says them.

    Raises:
        InputError: when the file holds no points or says other coordinates, the points lie in the image in other
            coordinates only, a grid is missing, or the result cannot be written.
    """
    first = None if start is None else read_grid(start)
    dims = 2 if chain.flat or (first is not None and first.flat) else 3
    found = read_points(source, dims)
    stated = coordinates or found.coordinates or COORDINATES[0]
    if is_markups(source):
        if coordinates in VOXELS:
            raise InputError(f"{source} says that it is in millimetres, but --coordinates {coordinates} was stated.")
    elif found.coordinates not in (None, stated):
        raise InputError(f"{source} names its columns as {found.coordinates}, but --coordinates {stated} was stated.")
    is_table = not is_markups(target)
    if stated in VOXELS and is_table and end is None:
        raise InputError("Landmarks in voxels need the images that they belong to: give --reference and --target.")
    points = in_space(found.points[:, :dims])
    if not is_markups(source):
        domain = first or chain.domain()
        if domain is not None:
            check_coordinates(source, points, stated, domain)
        points = to_world(points, stated, first)
    moved = chain.points(points)
    if is_table:
        moved = to_coordinates(moved, stated, None if end is None else read_grid(end))[:, :dims]
    write_bytes(target, points_text(target, source, found, moved).encode())
    return len(points), stated if is_table else "slicer"


def _labels(file: Any, path: str | Path) -> tuple[Tensor, np.dtype]:
    """Label map and the integer type that its file has, or int32 or int64 where that is none."""
    kind = file.get_data_dtype()
    slope, intercept = file.header.get_slope_inter()
    labels = labels_of(voxels_of(file, path, dtype=None), path)
    if kind.kind in "iu" and slope in (None, 1.0) and intercept in (None, 0.0):
        return labels, kind
    return labels, np.dtype(np.int64 if labels.dtype == torch.int64 else np.int32)


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

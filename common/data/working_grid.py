# SPDX-License-Identifier: Apache-2.0
"""Volumes brought to one size, voxel size and orientation, whatever scanner they come from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils.enums import MetaKeys

from common.checks import InputError
from common.data.transforms import is_label
from common.spatial import Grid, resample, working_grid

_LETTERS = ("RL", "AP", "SI")
"""The ways that an axis can go, by the axes of the world; the first ones are those of working grids."""


class WorkingGridd(MapTransform):
    """Resample volumes on a grid of RAS+ axes and of one size about the centre of each.

    The grid is that of :func:`sized_grid`, which :class:`common.data.ScanPairDataset` takes in inference, too. Images
    are interpolated linearly, blurred before where voxels become larger, with their smallest value outside; labels take
    the nearest voxel and are 0 outside. Two scans on one grid stay on one grid.

    Args:
        keys: entries loaded by :class:`common.data.LoadSubjectd`; keys that are "label" or end in "_label" are labels.
        spacing: millimetres per voxel along right, anterior, superior; None keeps each scan's own.
        spatial_size: voxels along these axes.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: for an image that is no volume, or whose header cannot be inverted.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spacing: Sequence[float] | None,
        spatial_size: Sequence[int],
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
        self.spatial_size = tuple(spatial_size)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with (1, *spatial_size) float32 images and labels in their dtype."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            image = subject[key]
            if image.ndim != 4:
                raise InputError(f"{image.meta.get('filename_or_obj', '?')} is no volume, but this data set has such.")
            source = Grid(tuple(image.shape[1:]), image.affine)
            target = sized_grid(source, self.spacing, self.spatial_size)
            of_labels = is_label(key)
            how: dict[str, Any] = {"mode": "nearest", "outside": 0.0} if of_labels else {}
            values = resample(image.as_tensor()[None], source, target, **how)[0]
            rest = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
            subject[key] = MetaTensor(values.to(image.dtype) if of_labels else values, affine=target.affine, meta=rest)
        return subject


def sized_grid(image: Grid, spacing: Sequence[float] | None, size: Sequence[int]) -> Grid:
    """:func:`common.spatial.working_grid` with so many voxels about its centre, to a voxel's rounding.

    Args:
        image: grid of the scan.
        spacing: millimetres per voxel along right, anterior, superior; None keeps the scan's own.
        size: voxels along these axes; for images of two dimensions the first two count.

    Raises:
        InputError: for a size of fewer axes than the image has.
    """
    if len(size) < image.dims:
        raise InputError(f"spatial_size is {[*size]}, but the scan is {image.dims}D: give {image.dims} numbers.")
    whole = working_grid(image, spacing)
    size = [*size[: image.dims], *whole.shape[image.dims :]]
    start = [(n - wanted) // 2 for n, wanted in zip(whole.shape, size, strict=True)]
    return whole.cropped(start, [first + n for first, n in zip(start, size, strict=True)])


def is_orientation(value: object) -> bool:
    """Whether something names the ways of three axes, one of the world each, such as "RAS" or "LIA"."""
    return isinstance(value, str) and len(value) == 3 and all(sum(c in pair for c in value) == 1 for pair in _LETTERS)


def turned_grid(grid: Grid, orientation: str) -> Grid:
    """The voxels of a working grid, whose axes are those nearest to RAS+, along axes of another order and direction.

    Args:
        grid: of :func:`common.spatial.working_grid`; a flat one stays as it is.
        orientation: where the axes go to, a letter each of R or L, A or P, S or I.

    Raises:
        InputError: for other letters.
    """
    if not is_orientation(orientation):
        raise InputError(f"orientation is {orientation!r}: give a letter each of R or L, A or P, S or I, such as RAS.")
    if grid.flat:
        return grid
    affine, axes = grid.affine.clone(), [next(i for i in range(3) if way in _LETTERS[i]) for way in orientation]
    for place, (axis, way) in enumerate(zip(axes, orientation, strict=True)):
        turned = way != _LETTERS[axis][0]
        affine[:3, place] = grid.affine[:3, axis] * (-1 if turned else 1)
        affine[:3, 3] += grid.affine[:3, axis] * (grid.shape[axis] - 1) * turned
    first, second, third = (grid.shape[axis] for axis in axes)
    return Grid((first, second, third), affine)


def along_ras(values: Sequence[float] | None, orientation: str) -> Sequence[float] | None:
    """Numbers along the axes of an orientation in the order right, anterior, superior; other than three stay."""
    if values is None or len(values) != len(_LETTERS):
        return values
    return [next(value for value, way in zip(values, orientation, strict=True) if way in pair) for pair in _LETTERS]

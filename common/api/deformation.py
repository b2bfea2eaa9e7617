# SPDX-License-Identifier: Apache-2.0
"""A transform between two scans, to be applied to further images and points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.apply import warped_labels, warped_values
from common.io.image_kinds import image_of
from common.io.images import Image, new_file
from common.io.landmarks import in_space
from common.io.nifti import read_grid, read_image, read_labels
from common.io.nifti_files import NIFTI
from common.io.transforms import Grid, Transform, write_displacement, write_transform
from common.spatial.plane import laid_field

_MODES = ("linear", "nearest")


class Deformation:
    """A map from the fixed to the moving scan, by which the moving one is warped; :meth:`inverse` is the way back.

    Args:
        transform: fixed world to moving world.
        fixed: grid where it starts, on which images are given unless another one is asked for.
        moving: grid where it ends.
        way_back: gives the inverse where it is known, or None; asked when it is needed.
    """

    def __init__(
        self, transform: Transform, fixed: Grid, moving: Grid, way_back: Callable[[], Transform | None] = lambda: None
    ) -> None:
        self.transform, self.fixed, self.moving = transform, fixed, moving
        self._way_back = way_back

    def __repr__(self) -> str:
        stages = ", ".join(type(stage).__name__ for stage in self.transform.stages)
        return f"Deformation({stages}; from a grid of {self.fixed.shape[: self.fixed.dims]})"

    def apply(self, image: Any, reference: Any = None, mode: str = "linear") -> Image:
        """An image of the moving scan's world, seen from the fixed scan: what ``scripts/apply.py`` makes of files.

        Args:
            image: of any kind that :meth:`common.api.Bundle.register` takes.
            reference: an image of any kind whose grid the result has; None for the fixed scan.
            mode: "linear", whose result is float32 and outside the smallest value of the image, or "nearest" for label
                maps, 0 outside.

        Raises:
            InputError: for another mode, an image that cannot be read, label maps without whole numbers, or an image of
                two dimensions with a volume.
        """
        if mode not in _MODES:
            raise InputError(f"mode is {mode!r}; give one of {', '.join(_MODES)}.")
        source = image_of(image, "image")
        grid = self.fixed if reference is None else read_grid(image_of(reference, "reference"))
        values, affine = (read_labels if mode == "nearest" else read_image)(source)
        moving = Grid.of(values.shape, affine)
        if moving.flat != grid.flat or grid.flat != self.fixed.flat:
            raise InputError(f"{source} is {moving.dims}D, the transform {self.fixed.dims}D, the result {grid.dims}D.")
        if mode == "nearest":
            warped = warped_labels(values, moving, self.transform, grid).numpy()
            kind = source.array.dtype if isinstance(source, Image) else warped.dtype
            warped = warped.astype(kind) if kind.kind in "iu" else warped
        else:
            warped = warped_values(values, moving, self.transform, grid, str(source)).numpy()
        return Image(warped, grid.affine.numpy(), f"warped {Path(str(source)).name}")

    def apply_points(self, points: Any) -> np.ndarray:
        """Where points of the fixed scan lie in the moving scan.

        Args:
            points: (N, 3), RAS+ millimetres; (N, 2) of images of two dimensions.

        Returns:
            The same shape, float64.

        Raises:
            InputError: for another shape.
        """
        given = torch.as_tensor(np.asarray(points, dtype=np.float64))
        if given.ndim != 2 or given.shape[1] != self.fixed.dims:
            raise InputError(f"Points have shape {tuple(given.shape)}; give (N, {self.fixed.dims}), RAS+ millimetres.")
        return self.transform.points(in_space(given))[:, : self.fixed.dims].numpy()

    def inverse(self) -> Deformation:
        """The way back: the registration's own where it is known, else it is solved for; folds are logged."""
        inverse = self._way_back() or self.transform.inverse()
        return Deformation(inverse, self.moving, self.fixed, lambda: self.transform)

    @property
    def ddf(self) -> Tensor:
        """(1, d, *fixed) float32, the whole map as displacements in voxels of the fixed grid."""
        return laid_field(self.transform.ddf(self.fixed), self.fixed.dims)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the transform for ITK, SimpleITK, ANTs and 3D Slicer.

        Args:
            path: ends in .h5 (displacement and affine map) or in .nii.gz or .nii (the whole as vectors in millimetres).
            overwrite: whether to replace a file that exists.

        Returns:
            The path.

        Raises:
            InputError: when the name ends otherwise, the file exists or cannot be written, or the map is a function
                and is to be written as .h5.
        """
        path = new_file(path, overwrite)
        if str(path).endswith(NIFTI):
            write_displacement(path, self.transform.ddf(self.fixed), self.fixed)
        else:
            write_transform(path, self.transform)
        return path

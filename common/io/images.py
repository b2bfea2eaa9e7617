# SPDX-License-Identifier: Apache-2.0
"""Images in memory, with their place in the world: those of other packages are made of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from common.checks import InputError
from common.io.itk_hdf5 import itk_place
from common.io.nifti import write_image
from common.io.nifti_files import nifti_image
from common.io.png import PNG, write_png
from common.spatial.world import Grid

_OTHER_KINDS = {"to_sitk": ("SimpleITK", "SimpleITK"), "to_ants": ("ants", "antspyx")}


@dataclass(frozen=True, eq=False, repr=False)
class Image:
    """An image or a label map in memory.

    Attributes:
        array: its values (*spatial), two or three axes, in the order in which nibabel returns them.
        affine: (4, 4) float64, voxels to millimetres RAS+.
        name: what messages and records call it.

    Raises:
        InputError: for an array of another number of axes, numbers that are not real, or an affine of another shape.
    """

    array: np.ndarray
    affine: np.ndarray
    name: str = "image"

    def __post_init__(self) -> None:
        array, affine = np.asarray(self.array), np.asarray(self.affine, dtype=np.float64)
        if array.ndim not in (2, 3) or array.dtype.kind not in "biuf":
            raise InputError(
                f"{self.name} has shape {array.shape} and numbers of type {array.dtype}, but one image of two or three "
                "dimensions with one real number per voxel is expected."
            )
        if affine.shape != (4, 4):
            raise InputError(f"{self.name} has an affine of shape {affine.shape}; give (4, 4), voxels to RAS+.")
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "affine", affine)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Image({self.name!r}, shape {self.array.shape}, {self.array.dtype})"

    @property
    def grid(self) -> Grid:
        """Where its voxels lie.

        Raises:
            InputError: when the affine cannot be inverted.
        """
        try:
            return Grid.of(self.array.shape, torch.from_numpy(self.affine))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the image, as inference writes its files.

        Args:
            path: ends in .nii.gz or .nii, of two dimensions also in .png (grey values, rounded).
            overwrite: whether to replace a file that exists.

        Returns:
            The path.

        Raises:
            InputError: when the name ends otherwise, the file exists or cannot be written.
        """
        path = new_file(path, overwrite)
        values = torch.from_numpy(np.ascontiguousarray(self.array))
        if path.name.endswith(PNG) and values.ndim == 2:
            write_png(path, values)
        else:
            write_image(path, values[None], torch.from_numpy(self.affine))
        return path

    def to_nibabel(self) -> Any:
        """As ``nibabel.Nifti1Image``, with its place in both forms of the header."""
        return nifti_image(self.array, self.affine)

    def to_metatensor(self) -> MetaTensor:
        """As MONAI's ``MetaTensor`` (1, *spatial)."""
        values = torch.from_numpy(np.array(self.array, order="C"))
        return MetaTensor(values[None], affine=torch.from_numpy(self.affine), meta={"filename_or_obj": self.name})

    def to_sitk(self) -> Any:
        """As ``SimpleITK.Image``, of two dimensions where it has two.

        Raises:
            InputError: when SimpleITK is not installed.
        """
        sitk = _package("to_sitk")
        # SimpleITK's arrays have the last axis first.
        image = sitk.GetImageFromArray(np.ascontiguousarray(_without_bool(self.array).T))
        origin, spacing, direction = itk_place(self.grid)
        image.SetOrigin(origin)
        image.SetSpacing(spacing)
        image.SetDirection(direction.flatten().tolist())
        return image

    def to_ants(self) -> Any:
        """As ``ants.ANTsImage``, which has fewer types of numbers: those that it lacks become others.

        Raises:
            InputError: when ants is not installed.
        """
        origin, spacing, direction = itk_place(self.grid)
        return _package("to_ants").from_numpy(_without_bool(self.array), origin, spacing, direction.numpy())


def new_file(path: str | Path, overwrite: bool) -> Path:
    """The path of a file that may be written.

    Raises:
        InputError: when it exists and is not to be replaced.
    """
    path = Path(path).expanduser()
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists: choose another name, or replace it with overwrite=True.")
    return path


def _without_bool(array: np.ndarray) -> np.ndarray:
    return array.astype(np.uint8) if array.dtype == bool else array


def _package(method: str) -> Any:
    import importlib

    module, name = _OTHER_KINDS[method]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{method}() needs {name}, which cannot be imported: pip install {name}.") from error

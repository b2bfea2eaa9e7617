# SPDX-License-Identifier: Apache-2.0
"""Images of other packages: nibabel, MONAI, SimpleITK and ANTs, the last two known by name and never imported here."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from nibabel.spatialimages import SpatialImage

from common.checks import InputError
from common.io.images import Image
from common.io.nifti import single_volume

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_KINDS = "a path, an image of nibabel, a MetaTensor, an image of SimpleITK or ANTs, or common.api.Image(array, affine)"


def image_of(source: Any, name: str) -> Image | str:
    """An image of any kind as it is read further on.

    Args:
        source: a path, nibabel's image, a MetaTensor (1, *spatial) or (*spatial), SimpleITK's or ANTs' image, or an
            :class:`Image` of this package or of another release of it.
        name: what an image without a file is called.

    Returns:
        The text of a path, else the image. Values are those of the source, scaled as its header says; they share its
        memory where they can.

    Raises:
        InputError: for anything else, and an image of vectors, colours or several volumes.
    """
    if isinstance(source, str | os.PathLike):
        return os.path.expanduser(os.fspath(source))
    if isinstance(source, Image):
        return source
    if isinstance(source, SpatialImage):
        named = source.get_filename() or name
        values, affine = single_volume(source, named)
        return Image(values, affine.numpy(), str(named))
    if isinstance(source, MetaTensor):
        return _of_metatensor(source, name)
    package, kind = type(source).__module__.partition(".")[0], type(source).__name__
    if package == "SimpleITK" and kind == "Image":
        return _of_sitk(source, name)
    if package == "ants" and kind == "ANTsImage":
        return _of_ants(source, name)
    if kind == "Image" and {"array", "affine", "to_sitk"} <= {*dir(source)}:
        # Of another release, whose package has a name of its own.
        return Image(source.array, source.affine, source.name)
    raise InputError(f"The {name} image is a {type(source).__name__} without a place in the world; give {_KINDS}.")


def _of_metatensor(source: MetaTensor, name: str) -> Image:
    values = source.as_tensor().detach().cpu().numpy()
    if values.ndim == 4 or (values.ndim == 3 and values.shape[0] == 1):
        if values.shape[0] != 1:
            raise InputError(f"The {name} image has {values.shape[0]} channels, but one is expected: choose one.")
        values = values[0]
    affine = to_affine_nd(3, source.affine.detach().to("cpu", torch.float64)).numpy()
    if str(source.meta.get("space", "RAS")) == "LPS":
        affine = _LPS_TO_RAS @ affine
    return Image(values, affine, _named(source, name))


def _named(source: MetaTensor, name: str) -> str:
    file = source.meta.get("filename_or_obj")
    return str(file) if isinstance(file, str | Path) else name


def _of_sitk(source: Any, name: str) -> Image:
    _check_scalar(source.GetNumberOfComponentsPerPixel(), name)
    # The package that the image is of; a copy, as a view would outlive the image.
    values = sys.modules["SimpleITK"].GetArrayFromImage(source).T
    return Image(values, _affine_at(source.GetOrigin(), source.GetSpacing(), source.GetDirection()), name)


def _of_ants(source: Any, name: str) -> Image:
    _check_scalar(source.components, name)
    return Image(source.numpy(), _affine_at(source.origin, source.spacing, source.direction), name)


def _affine_at(origin: Sequence[float], spacing: Sequence[float], direction: Any) -> np.ndarray:
    """The affine (4, 4), voxels to millimetres RAS+, of what ITK, SimpleITK and ANTs say in LPS.

    Args:
        origin: (d,).
        spacing: (d,).
        direction: (d, d), or its d * d numbers row by row.
    """
    dims = len(origin)
    affine = np.eye(4)
    affine[:dims, :dims] = np.asarray(direction, dtype=np.float64).reshape(dims, dims) * np.asarray(spacing)
    affine[:dims, 3] = origin
    return np.asarray(_LPS_TO_RAS @ affine)


def _check_scalar(components: int, name: str) -> None:
    if components != 1:
        raise InputError(f"The {name} image has {components} numbers per voxel, but one is expected.")

# SPDX-License-Identifier: Apache-2.0
"""Transform files of ITK are read: affine, displacement field and their compositions; :mod:`common.io.itk_hdf5` writes.

ITK's world is LPS, that of NIfTI and of this project RAS; both are millimetres. A transform of two dimensions is one of
slices here (:mod:`common.spatial.plane`). ITK is imported when it is needed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checks import InputError
from common.io.files import first_line
from common.io.itk_hdf5 import FLIP, itk_place
from common.io.nifti import check_is_file
from common.spatial.finite import all_finite
from common.spatial.plane import lifted_field
from common.spatial.rounding import turned_vectors
from common.spatial.transform import Affine, Field, Transform
from common.spatial.world import Grid

ITK_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
IMAGE_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
"""Images of ITK, of which displacement fields are read."""


def read_itk(path: str | Path, reference: Grid | None = None) -> Transform:
    """Read a transform file of ITK, as ANTs, elastix (ITK form), 3D Slicer and this project write them.

    Args:
        path: .h5, .hdf5, .tfm, .txt or .mat.
        reference: grid of the fixed image. B-splines and other curved transforms are sampled where the affine maps
            before them put it.

    Returns:
        The chain of its stages, in the order in which they are applied.

    Raises:
        InputError: when the file is missing, damaged, of other than two or three dimensions, or holds a curved
            transform other than a displacement field and ``reference`` is not given.
    """
    import itk

    path = Path(path)
    check_is_file(path)
    reader = itk.TransformFileReaderTemplate[itk.D].New(FileName=str(path))
    try:
        reader.Update()
        listed = reader.GetModifiableTransformList()
        # Taken from the end, where Python's view of the list yields usable objects.
        found = [listed.pop() for _ in range(len(listed))]
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as an ITK transform ({_reason(error)}).") from error
    # The last one is applied first, in the file as in a composition.
    parts = [part for item in found for part in reversed(_parts(item))]
    if not parts:
        raise InputError(f"{path} holds no transform.")
    dims = {size for part in parts for size in (part.GetInputSpaceDimension(), part.GetOutputSpaceDimension())}
    if dims not in ({2}, {3}):
        raise InputError(f"{path} holds a transform that is neither of two nor of three dimensions.")
    return Transform(_stages(parts, reference, path), flat=dims == {2})


def read_itk_field(path: str | Path) -> Field:
    """Read a displacement field from an image of ITK, as elastix and 3D Slicer write them: vectors in LPS millimetres.

    Args:
        path: .mha, .mhd, .nrrd or .nhdr.

    Raises:
        InputError: when the file is damaged or holds no vectors of two or three dimensions.
    """
    import itk

    path = Path(path)
    try:
        header = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
        if header is None:
            raise InputError(f"{path} cannot be read as an image of ITK.")
        header.SetFileName(str(path))
        header.ReadImageInformation()
        dims = header.GetNumberOfDimensions()
        if dims not in (2, 3) or header.GetNumberOfComponents() != dims:
            raise InputError(f"{path} holds no vectors of three components in three dimensions: it is no field.")
        reader = itk.ImageFileReader[itk.Image[itk.Vector[itk.F, dims], dims]].New(FileName=str(path))
        reader.Update()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as an image of ITK ({_reason(error)}).") from error
    field = _field(reader.GetOutput(), path)
    _check_finite(field, path)
    return field


def _reason(error: Exception) -> str:
    """The sentence in ITK's message, behind the place in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    spoken = [line.partition("ERROR:")[2].partition("):")[2].strip() for line in lines if "ERROR:" in line]
    return next((text.rstrip(".") for text in spoken if text), first_line(error))


def _parts(item: Any) -> list[Any]:
    import itk

    item = itk.down_cast(item)
    if item.GetNameOfClass() != "CompositeTransform":
        return [item]
    return [part for n in range(item.GetNumberOfTransforms()) for part in _parts(item.GetNthTransform(n))]


def _stages(parts: list[Any], reference: Grid | None, path: Path) -> tuple[Affine | Field, ...]:
    stages: list[Affine | Field] = []
    for part in parts:
        stage = _stage(part, reference, path)
        _check_finite(stage, path)
        if reference is not None and isinstance(stage, Affine):
            # The next one meets the points where this one has put them.
            reference = replace(reference, affine=stage.matrix @ reference.affine)
        stages.append(stage)
    return tuple(stages)


def _stage(part: Any, reference: Grid | None, path: Path) -> Affine | Field:
    if part.IsLinear():
        return _affine(part)
    if part.GetNameOfClass() == "DisplacementFieldTransform":
        return _field(part.GetDisplacementField(), path)
    if reference is None:
        raise InputError(
            f"{path} holds a {part.GetNameOfClass()}, which has to be sampled: give the fixed image as reference."
        )
    return _sampled(part, reference, path)


def _affine(part: Any) -> Affine:
    """Any linear transform, from where it puts the origin and the ends of the axes."""
    dims = part.GetInputSpaceDimension()
    ends = np.vstack([np.zeros(dims), np.eye(dims)])
    moved = torch.tensor([list(part.TransformPoint(end.tolist())) for end in ends], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:dims, 3] = moved[0]
    matrix[:dims, :dims] = (moved[1:] - moved[0]).T
    return Affine(FLIP @ matrix @ FLIP)


def _field(image: Any, path: Path) -> Field:
    import itk

    dims = image.GetImageDimension()
    linear = np.asarray(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:dims, :dims] = torch.from_numpy(linear)
    affine[:dims, 3] = torch.tensor(list(image.GetOrigin()), dtype=torch.float64)
    vectors = torch.from_numpy(np.array(itk.array_view_from_image(image), dtype=np.float32))
    shape = tuple(reversed(vectors.shape[:-1]))
    try:
        grid = Grid.of(shape, FLIP @ affine)
    except InputError as error:
        raise InputError(f"{path} holds a field whose directions cannot be inverted.") from error
    columns = vectors.movedim(-1, 0).permute(0, *range(dims, 0, -1)).flatten(1)
    ddf = turned_vectors(torch.linalg.inv(affine[:dims, :dims]), columns).view(1, dims, *shape)
    return Field(grid, lifted_field(ddf, dims))


def _sampled(part: Any, reference: Grid, path: Path) -> Field:
    """A curved transform as displacements on the reference grid."""
    import itk

    dims = part.GetInputSpaceDimension()
    if dims != reference.dims:
        raise InputError(f"{path} holds a transform in {dims}D, but the fixed image is {reference.dims}D.")
    origin, spacing, direction = itk_place(reference)
    image = itk.Image[itk.Vector[itk.F, dims], dims]
    sampler = itk.TransformToDisplacementFieldFilter[image, itk.D].New(Transform=part)
    sampler.SetSize(list(reference.shape[:dims]))
    sampler.SetOutputOrigin(origin)
    sampler.SetOutputSpacing(spacing)
    sampler.SetOutputDirection(itk.matrix_from_array(direction.numpy()))
    sampler.Update()
    return _field(sampler.GetOutput(), path)


def _check_finite(stage: Affine | Field, path: Path) -> None:
    values = stage.matrix if isinstance(stage, Affine) else stage.ddf
    if not all_finite(values):
        raise InputError(f"{path} holds values that are NaN or infinite: the method that wrote it has failed.")
    if isinstance(stage, Affine) and float(torch.linalg.svdvals(values[:3, :3]).min()) < 1e-6:
        raise InputError(f"{path} holds an affine map that cannot be inverted.")

# SPDX-License-Identifier: Apache-2.0
"""Transform files of ITK: affine, displacement field and their compositions.

ITK's world is LPS, that of NIfTI and of this project RAS; both are millimetres. ITK is imported when it is needed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import check_to_write
from common.io.files import first_line, replacing
from common.io.nifti import check_is_file
from common.spatial.rounding import turned_vectors
from common.spatial.transform import Affine, Field, Function, Transform
from common.spatial.world import Grid

ITK_SUFFIXES = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
IMAGE_SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")
"""Images of ITK, of which displacement fields are read."""
_FLIP = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
"""RAS to LPS and back."""


def read_itk(path: str | Path, reference: Grid | None = None) -> Transform:
    """Read a transform file of ITK, as ANTs, elastix (ITK form), 3D Slicer and this project write them.

    Args:
        path: .h5, .hdf5, .tfm, .txt or .mat.
        reference: grid of the fixed image. B-splines and other curved transforms are sampled where the affine maps
            before them put it.

    Returns:
        The chain of its stages, in the order in which they are applied.

    Raises:
        InputError: when the file is missing, damaged, not three-dimensional, or holds a curved transform other than a
            displacement field and ``reference`` is not given.
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
    if any(part.GetInputSpaceDimension() != 3 or part.GetOutputSpaceDimension() != 3 for part in parts):
        raise InputError(f"{path} holds a transform that is not three-dimensional.")
    return Transform(_stages(parts, reference, path))


def read_itk_field(path: str | Path) -> Field:
    """Read a displacement field from an image of ITK, as elastix and 3D Slicer write them: vectors in LPS millimetres.

    Args:
        path: .mha, .mhd, .nrrd or .nhdr.

    Raises:
        InputError: when the file is damaged or holds no three-dimensional vectors.
    """
    import itk

    path = Path(path)
    reader = itk.ImageFileReader[itk.Image[itk.Vector[itk.F, 3], 3]].New(FileName=str(path))
    try:
        reader.UpdateOutputInformation()
        header = reader.GetImageIO()
        if header.GetNumberOfDimensions() != 3 or header.GetNumberOfComponents() != 3:
            raise InputError(f"{path} holds no vectors of three components in three dimensions: it is no field.")
        reader.Update()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read as an image of ITK ({_reason(error)}).") from error
    field = _field(reader.GetOutput(), path)
    _check_finite(field, path)
    return field


def write_transform(path: str | Path, transform: Transform) -> None:
    """Write a transform as ITK's composition in HDF5, which ITK, SimpleITK, ANTs and 3D Slicer read.

    Single precision, compressed; written under a temporary name and moved.

    Args:
        path: ends in .h5.
        transform: fixed world to moving world.

    Raises:
        InputError: when the name ends otherwise, the transform has functions, which ITK does not know, values are not
            finite or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".h5":
        raise InputError(f"{path}: transforms are written as .h5.")
    stages = [stage for stage in transform.stages if not isinstance(stage, Function)]
    if len(stages) < len(transform.stages):
        raise InputError(f"{path}: ITK has no functions; sample the transform on a grid first.")
    import itk

    for stage in stages:
        check_to_write(path, stage.matrix if isinstance(stage, Affine) else stage.ddf)
    composition = itk.CompositeTransform[itk.F, 3].New()
    for stage in reversed(stages or [Affine(torch.eye(4))]):
        composition.AddTransform(_itk_affine(stage) if isinstance(stage, Affine) else _itk_field(stage))
    writer = itk.TransformFileWriterTemplate[itk.F].New(Input=composition)
    writer.SetUseCompression(True)
    try:
        with replacing(path, ".h5") as temporary:
            writer.SetFileName(str(temporary))
            writer.Update()
    except RuntimeError as error:
        raise InputError(f"Cannot write {path}: {_write_failure(error, path.parent)}.") from error


def _write_failure(error: RuntimeError, folder: Path) -> str:
    """ITK does not pass on why a write failed: a disk without space says it itself."""
    status = os.statvfs(folder)
    return "the disk is full" if status.f_bavail * status.f_frsize < (1 << 20) else _reason(error)


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
            reference = Grid(reference.shape, stage.matrix @ reference.affine)
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
    ends = np.vstack([np.zeros(3), np.eye(3)])
    moved = torch.tensor([list(part.TransformPoint(end.tolist())) for end in ends], dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = moved[0]
    matrix[:3, :3] = (moved[1:] - moved[0]).T
    return Affine(_FLIP @ matrix @ _FLIP)


def _field(image: Any, path: Path) -> Field:
    import itk

    linear = np.asarray(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.from_numpy(linear)
    affine[:3, 3] = torch.tensor(list(image.GetOrigin()), dtype=torch.float64)
    vectors = torch.from_numpy(np.asarray(itk.array_view_from_image(image), dtype=np.float32))
    try:
        i, j, k = reversed(vectors.shape[:3])
        grid = Grid((i, j, k), _FLIP @ affine)
    except InputError as error:
        raise InputError(f"{path} holds a field whose directions cannot be inverted.") from error
    columns = vectors.permute(2, 1, 0, 3).flatten(0, 2).T
    return Field(grid, turned_vectors(torch.linalg.inv(affine[:3, :3]), columns).view(1, 3, *grid.shape))


def _sampled(part: Any, reference: Grid, path: Path) -> Field:
    """A curved transform as displacements on the reference grid."""
    import itk

    lps = _FLIP @ reference.affine
    spacing = lps[:3, :3].norm(dim=0)
    sampler = itk.TransformToDisplacementFieldFilter[itk.Image[itk.Vector[itk.F, 3], 3], itk.D].New(Transform=part)
    sampler.SetSize(list(reference.shape))
    sampler.SetOutputOrigin(lps[:3, 3].tolist())
    sampler.SetOutputSpacing(spacing.tolist())
    sampler.SetOutputDirection(itk.matrix_from_array((lps[:3, :3] / spacing).numpy()))
    sampler.Update()
    return _field(sampler.GetOutput(), path)


def _check_finite(stage: Affine | Field, path: Path) -> None:
    values = stage.matrix if isinstance(stage, Affine) else stage.ddf
    if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
        raise InputError(f"{path} holds values that are NaN or infinite: the method that wrote it has failed.")
    if isinstance(stage, Affine) and float(torch.linalg.svdvals(values[:3, :3]).min()) < 1e-6:
        raise InputError(f"{path} holds an affine map that cannot be inverted.")


def _itk_affine(stage: Affine) -> Any:
    import itk

    matrix = (_FLIP @ stage.matrix @ _FLIP).numpy()
    affine = itk.AffineTransform[itk.F, 3].New()
    affine.SetMatrix(itk.matrix_from_array(matrix[:3, :3].astype(np.float32)))
    affine.SetTranslation(matrix[:3, 3].tolist())
    return affine


def _itk_field(stage: Field) -> Any:
    import itk

    lps = _FLIP @ stage.grid.affine
    spacing = lps[:3, :3].norm(dim=0)
    vectors = _vectors(stage.ddf, lps[:3, :3])
    image = itk.image_from_array(vectors, ttype=itk.Image[itk.Vector[itk.F, 3], 3])
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection(itk.matrix_from_array((lps[:3, :3] / spacing).numpy()))
    field = itk.DisplacementFieldTransform[itk.F, 3].New()
    field.SetDisplacementField(image)
    return field


def _vectors(ddf: Tensor, linear: Tensor) -> np.ndarray:
    """(K, J, I, 3) millimetres, contiguous, as ITK stores them."""
    return torch.einsum("rc,cijk->kjir", linear.float(), ddf[0].cpu().float()).contiguous().numpy()

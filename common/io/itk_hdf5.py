# SPDX-License-Identifier: Apache-2.0
"""ITK's transform file in HDF5, written without ITK, which takes ten seconds of a processor to be loaded.

A group ``TransformGroup`` holds the composition, which is empty, and its parts, the last of which is applied first.
Parameters of an affine map are the rows of its matrix and the translation, those of a displacement field its vectors,
first axis fastest. ITK's world is LPS.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import check_to_write
from common.io.files import write_bytes
from common.spatial.plane import laid_field
from common.spatial.transform import Affine, Field, Function, Transform
from common.spatial.world import Grid

FLIP = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
"""RAS to LPS and back."""
_CHUNK = 1 << 18
"""Values that are compressed together."""
_LEVEL = 2
_WRITER_OF_FORMAT = "5.4.7"
"""The version of ITK whose files are of this form."""


class _Part(NamedTuple):
    kind: str
    parameters: np.ndarray
    fixed: list[float]


def write_transform(path: str | Path, transform: Transform) -> None:
    """Write a transform as ITK's composition in HDF5, which ITK, SimpleITK, ANTs and 3D Slicer read.

    That of images of two dimensions is one of two dimensions in the file, too. Single precision, compressed; written
    whole or not at all.

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
    for stage in stages:
        check_to_write(path, stage.matrix if isinstance(stage, Affine) else stage.ddf)
    import h5py

    dims = 2 if transform.flat else 3
    # In memory, for h5py does not pass on why a write failed.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["ITKVersion"] = _texts(_WRITER_OF_FORMAT)
        file["HDFVersion"] = _texts(h5py.version.hdf5_version)
        group = file.create_group("TransformGroup")
        group["0/TransformType"] = _texts(f"CompositeTransform_float_{dims}_{dims}")
        for number, part in enumerate(_parts(stages or [Affine(torch.eye(4))], dims), start=1):
            group[f"{number}/TransformType"] = _texts(f"{part.kind}_float_{dims}_{dims}")
            group[f"{number}/TransformFixedParameters"] = np.array(part.fixed, np.float64)
            _write_compressed(group[str(number)], "TransformParameters", part.parameters)
    write_bytes(path, content.getbuffer())


def _texts(text: str) -> Any:
    import h5py

    return np.array([text], dtype=h5py.string_dtype("ascii"))


def _parts(stages: list[Affine | Field], dims: int) -> Iterator[_Part]:
    for stage in reversed(stages):
        yield _affine(stage, dims) if isinstance(stage, Affine) else _field(stage)


def _affine(stage: Affine, dims: int) -> _Part:
    matrix = (FLIP @ stage.matrix @ FLIP).numpy()
    parameters = np.concatenate([matrix[:dims, :dims].ravel(), matrix[:dims, 3]])
    return _Part("AffineTransform", parameters.astype(np.float32), [0.0] * dims)


def _field(stage: Field) -> _Part:
    dims = stage.grid.dims
    linear = (FLIP @ stage.grid.affine)[:dims, :dims].float()
    vectors = torch.einsum("rc,c...->...r", linear, laid_field(stage.ddf, dims)[0].cpu().float())
    stored = vectors.permute(*range(dims - 1, -1, -1), dims).contiguous()
    origin, spacing, direction = itk_place(stage.grid)
    fixed = [*map(float, stage.grid.shape[:dims]), *origin, *spacing, *direction.flatten().tolist()]
    return _Part("DisplacementFieldTransform", stored.numpy().ravel(), fixed)


def itk_place(grid: Grid) -> tuple[list[float], list[float], Tensor]:
    """Origin, spacing and directions (d, d) of a grid as ITK has them."""
    lps = FLIP @ grid.affine
    spacing = lps[:3, :3].norm(dim=0)
    direction = (lps[:3, :3] / spacing)[: grid.dims, : grid.dims]
    return lps[: grid.dims, 3].tolist(), spacing[: grid.dims].tolist(), direction


def _write_compressed(group: Any, name: str, values: np.ndarray) -> None:
    """As HDF5 does with its filters "shuffle" and "gzip", by a library that takes a tenth of the time."""
    from isal import isal_zlib

    size = min(_CHUNK, len(values))
    dataset = group.create_dataset(
        name, values.shape, values.dtype, chunks=(size,), compression="gzip", compression_opts=_LEVEL, shuffle=True
    )
    for start in range(0, len(values), size):
        chunk = np.zeros(size, values.dtype)
        part = values[start : start + size]
        chunk[: len(part)] = part
        shuffled = np.ascontiguousarray(chunk.view(np.uint8).reshape(size, values.itemsize).T)
        dataset.id.write_direct_chunk((start,), isal_zlib.compress(shuffled, level=_LEVEL))

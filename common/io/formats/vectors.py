# SPDX-License-Identifier: Apache-2.0
"""One vector per voxel, in whatever frame a tool has it, as a displacement field in voxels, and back.

Every frame is affine in the index x of a voxel and its vector v: the voxel corresponds to the place ``vector v + index
x`` in the moving world, counted in voxels of the field's own grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import check_finite
from common.io.formats.fsl import NEEDS_BOTH, fsl_frame
from common.spatial.rounding import turned_vectors
from common.spatial.transform import Field
from common.spatial.world import Grid, displacement_to_moving

LPS = (-1.0, -1.0, 1.0)
"""Signs between the world of NIfTI (right, anterior, superior) and that of ITK (left, posterior, superior)."""
_SCALES = (0.4, 2.5)
"""Between the worlds of two scans, positions are stretched by no more than this; displacements have no such slope."""
_SAMPLES_PER_AXIS = 16


def field_of(
    path: Path, vectors: Tensor, own: Grid, convention: str, moving: Grid | None = None, fixed: Grid | None = None
) -> Field:
    """Vectors of a convention as a field.

    Args:
        path: of the file, for messages.
        vectors: (*own.shape, 3).
        own: grid of the file.
        convention: one of :data:`common.io.formats.conventions.VECTORS`.
        moving: grid of the moving scan, for the frames of FSL.
        fixed: grid of the fixed scan, likewise; default: ``own``.

    Raises:
        InputError: when values are not finite, or a grid is missing.
    """
    check_finite(path, vectors)
    vector, index = _frame(path, convention, own, moving, fixed)
    ddf = turned_vectors(vector, vectors.float().flatten(0, 2).T).view(1, 3, *own.shape)
    return Field(own, ddf if _is_identity(index) else ddf + _linear(index, own))


def vectors_of(ddf: Tensor, own: Grid, convention: str, moving: Grid | None = None) -> Tensor:
    """The opposite of :func:`field_of`.

    Args:
        ddf: (1, 3, *own.shape), voxels of ``own``.
        own: grid of the field, that of the fixed scan.
        convention: as there.
        moving: as there.

    Returns:
        (*own.shape, 3), float32.

    Raises:
        InputError: when a grid is missing.
    """
    vector, index = _frame(Path("The field"), convention, own, moving, None)
    place = ddf.cpu().float()
    if not _is_identity(index):
        place = place - _linear(index, own)
    return torch.einsum("rc,cijk->ijkr", torch.linalg.inv(vector).float(), place[0]).contiguous()


def position_frame(vectors: Tensor, frames: Mapping[str, Tensor]) -> str | None:
    """The frame in which vectors are positions, None where they are displacements.

    Positions grow with the index as a frame does, but for the turn and stretch between the worlds of two scans.

    Args:
        vectors: (X, Y, Z, 3).
        frames: (4, 4) by name, index to the frame.
    """
    shape = vectors.shape[:3]
    if min(shape) < 2:
        return None
    steps = [max(1, n // _SAMPLES_PER_AXIS) for n in shape]
    sample = vectors[:: steps[0], :: steps[1], :: steps[2]].double()
    axes = [torch.arange(n, dtype=torch.float64) * step for n, step in zip(sample.shape[:3], steps, strict=True)]
    index, values = torch.cartesian_prod(*axes), sample.reshape(-1, 3)
    centre, middle = index.mean(0), values.mean(0)
    if not bool(torch.isfinite(values).all()):
        return None
    slope = torch.linalg.lstsq(index - centre, values - middle).solution.T
    rest = (values - middle - (index - centre) @ slope.T).norm()
    distances: dict[str, float] = {}
    for name, frame in frames.items():
        relative = slope @ torch.linalg.inv(frame[:3, :3])
        scales = torch.linalg.svdvals(relative)
        if rest < 0.5 * (values - middle).norm() and scales.min() > _SCALES[0] and scales.max() < _SCALES[1]:
            # Frames of like axes are told apart by where they begin.
            offset = (middle - frame[:3, :3] @ centre - frame[:3, 3]).norm() / (values - middle).norm(dim=1).max()
            distances[name] = float((relative - torch.eye(3)).norm() + 0.1 * offset)
    return min(distances, key=lambda name: distances[name]) if distances else None


def _frame(path: Path, name: str, own: Grid, moving: Grid | None, fixed: Grid | None) -> tuple[Tensor, Tensor]:
    """(3, 3) for the vectors and (4, 4) for the index, to voxels of ``own``."""
    eye, to_voxels = torch.eye(4, dtype=torch.float64), torch.linalg.inv(own.affine)
    if name == "voxels":
        return eye[:3, :3], eye
    if name == "ras_mm":
        return to_voxels[:3, :3], eye
    if name == "lps_mm":
        return to_voxels[:3, :3] * torch.tensor(LPS, dtype=torch.float64), eye
    if name == "ras_positions":
        return to_voxels[:3, :3], _constant(to_voxels)
    if moving is None:
        raise InputError(f"{path} is in FSL's millimetres and {NEEDS_BOTH}.")
    back = to_voxels @ moving.affine @ torch.linalg.inv(fsl_frame(moving))
    if name == "fsl_absolute":
        return back[:3, :3], _constant(back)
    # The frame of the fixed scan, wherever the voxels of the file lie in it.
    reference = own if fixed is None else fixed
    return back[:3, :3], back @ fsl_frame(reference) @ torch.linalg.inv(reference.affine) @ own.affine


def _constant(matrix: Tensor) -> Tensor:
    """(4, 4) that sends every index to where a matrix sends 0."""
    result = torch.zeros(4, 4, dtype=torch.float64)
    result[:, 3] = matrix[:, 3]
    return result


def _is_identity(index: Tensor) -> bool:
    return bool((index == torch.eye(4)).all())


def _linear(index: Tensor, own: Grid) -> Tensor:
    """(1, 3, *own.shape), ``index x - x`` for every voxel."""
    return displacement_to_moving(own, own, alignment=own.affine @ index @ torch.linalg.inv(own.affine))

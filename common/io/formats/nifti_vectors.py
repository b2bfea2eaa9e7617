# SPDX-License-Identifier: Apache-2.0
"""Vectors in NIfTI files: what the header says of them, and what their values say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import VOXEL_MARK, check_displacements
from common.io.formats import fnirt, mrtrix, niftyreg, spm
from common.io.formats.conventions import VECTORS, check_stated
from common.io.formats.fsl import fsl_frame
from common.io.formats.recognised import Recognised
from common.io.formats.vectors import field_of, position_frame
from common.io.nifti import open_field, spatial_grid, voxels_of
from common.spatial.transform import Transform
from common.spatial.world import Grid

_DISPVECT, _VECTOR = 1006, 1007
_INTENTS = {_DISPVECT: "ras_mm", _VECTOR: "lps_mm"}
"""What the intents of NIfTI mean to ITK 5: vectors of 1006 are RAS and change signs on reading, of 1007 they stay."""
_AFNI_EXTENSION = 4
_UNKNOWN, _PERHAPS_VOXELS = "unknown", "perhaps voxels"
"""In place of the first convention: it has to be stated; or voxels are the usual thing, but not sure."""


def read_nifti(
    path: Path, convention: str, reference: Grid | None, moving: Grid | None
) -> tuple[Transform, str] | None:
    """A NIfTI of vectors whose place in the world is known; as :func:`common.io.formats.reader.read_world`."""
    file = open_field(path, reference)
    if convention == "itk" and len(file.shape) != 5:
        raise InputError(f"{path} is a NIfTI image, not an ITK transform file: state --convention lps_mm or voxels.")
    seen = recognise(path, file)
    if seen is None:
        check_stated(path, f"a NIfTI image of shape {file.shape}", convention, ("voxels", "learn2reg_half"))
        return None
    check_stated(path, seen.what, convention, seen.conventions)
    if seen.read is not None:
        return seen.read(path, file, reference, moving), seen.conventions[0]
    if convention == "learn2reg_half" or seen.conventions[0] == "voxels":
        return None
    own = spatial_grid(file, path)
    if reference is not None and _is_uncoded(file) and own.shape == reference.shape:
        own = reference
    vectors = torch.from_numpy(voxels_of(file, path).reshape(*own.shape, 3))
    found = _by_values(path, vectors, own, seen, convention)
    if found is None or (found == "voxels" and len(file.shape) == 4):
        return None
    field = field_of(path, vectors, own, found, moving, reference if found == "fsl_relative" else None)
    if found in ("voxels", "lps_mm", "ras_mm"):
        check_displacements(path, field.ddf, found, has_world=True)
    return Transform((field,)), found


def recognise(path: Path, file: Any) -> Recognised | None:
    """What a NIfTI is by its header; None for scans, series and components that come first.

    Raises:
        InputError: for what is known and not read.
    """
    for tool in (niftyreg, spm, fnirt, mrtrix):
        seen = tool.recognise(path, file)
        if seen is not None:
            return seen
    shape, intent = tuple(file.shape), int(file.header["intent_code"])
    if len(shape) == 5 and shape[3:] != (1, 3):
        raise InputError(f"{path} has shape {shape}: a vector image is (D, H, W, 1, 3), this is something else.")
    if len(shape) < 4 or shape[-1] != 3:
        return None
    if any(int(extension.get_code()) == _AFNI_EXTENSION for extension in file.header.extensions):
        return Recognised("an image of AFNI, which does not say what its vectors are", (_UNKNOWN, *VECTORS))
    if intent in _INTENTS:
        found = _INTENTS[intent]
        others = (name for name in VECTORS if name != found and not name.startswith("fsl"))
        return Recognised(f"a vector image of intent {intent}, that is {found}", (found, *others))
    if len(shape) == 5:
        return Recognised("a vector image without intent", (_UNKNOWN, *VECTORS))
    if bytes(file.header["intent_name"].item()) == VOXEL_MARK:
        return Recognised("a field that says that it holds voxels", ("voxels",))
    return Recognised("a field without intent", (_PERHAPS_VOXELS, *VECTORS, "learn2reg_half"))


def _by_values(path: Path, vectors: Tensor, own: Grid, seen: Recognised, stated: str) -> str | None:
    """The convention, settled or contradicted by the values; None for what may be voxels.

    Raises:
        InputError: when the values are positions and displacements were stated or the other way round, or nothing says
            what they are.
    """
    lps = torch.diag(torch.tensor([-1.0, -1, 1, 1], dtype=torch.float64)) @ own.affine
    frames = {"voxels": torch.eye(4, dtype=torch.float64), "lps": lps, "ras_positions": own.affine}
    if seen.conventions[0].startswith("fsl"):
        frames = {"fsl_absolute": fsl_frame(own)}
    positions = position_frame(vectors, frames)
    found = seen.conventions[0] if stated == "auto" else stated
    if positions in ("ras_positions", "fsl_absolute"):
        if stated not in ("auto", positions):
            raise InputError(f"{path}, read as {found}, holds positions, not displacements: state {positions}.")
        return positions
    if positions == "lps":
        raise InputError(f"{path} holds positions in LPS millimetres: subtract the voxels' own places to get lps_mm.")
    if positions is None and found in ("ras_positions", "fsl_absolute"):
        raise InputError(f"{path}, read as {found}, holds no positions: its values do not grow with the place.")
    if found == _UNKNOWN:
        raise InputError(f"{path} is {seen.what}: state --convention {', '.join(VECTORS[:-1])} or {VECTORS[-1]}.")
    return None if found == _PERHAPS_VOXELS else found


def _is_uncoded(file: Any) -> bool:
    """Whether a header says nothing about the world."""
    return int(file.header["sform_code"]) <= 0 and int(file.header["qform_code"]) <= 0

# SPDX-License-Identifier: Apache-2.0
"""Deformable Spatial Registration objects of DICOM: a displacement field and the affine map after it, in millimetres.

The object (PS3.3, A.39.2 and C.20.3) maps points of the registered frame of reference, which is that of the fixed
series, to points of the source frame, that of the moving one, as resampling the moving series needs it:

    source = M_post (M_pre x + D(x))

with x at the voxels of a grid of right angles in the registered frame. The grid has two direction cosines; its third
axis is their cross product, so that grids of the other handedness are stored from their last slice on. Offsets D are
float32, x, y, z in LPS millimetres, the first axis of the grid running fastest. pydicom and highdicom are imported when
they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.dicom_source import TO_RCS, check_source, equipment, refer_to, references, take_over
from common.io.field_checks import check_to_write
from common.io.files import first_line, replacing
from common.io.nifti import check_is_file
from common.spatial.transform import Affine, Field, Transform
from common.spatial.world import Grid, resample_ddf

SUFFIX = ".dcm"
"""What files of DICOM here end in."""
STORAGE = "1.2.840.10008.5.1.4.1.1.66.3"
"""SOP class: Deformable Spatial Registration Storage."""
_SERIES_NUMBER = 9002
_BY_CONTENT = ("125024", "DCM", "Image Content-based Alignment")
"""Of CID 7100, RCS Registration Method Type."""
_RIGID = 1e-6
"""Largest deviation of MᵀM from the identity of what is called rigid."""
_UPRIGHT = 1e-3
"""Voxels; a grid that lies so near one of right angles has them."""
_PRE = "PreDeformationMatrixRegistrationSequence"
_POST = "PostDeformationMatrixRegistrationSequence"
_GRID = "DeformableRegistrationGridSequence"


def write_registration(
    path: str | Path, field: Field, alignment: Tensor, fixed: Sequence[Any], moving: Sequence[Any]
) -> None:
    """Write a registration of two series as one object in the study of the fixed one.

    Where the axes of the field's grid are not at right angles (gantry tilt), the field is resampled on a grid with
    right ones and the same in-plane axes, which covers it.

    Args:
        path: ends in .dcm.
        field: displacement on the fixed grid.
        alignment: (4, 4), after it: fixed world to moving world, RAS+ millimetres.
        fixed: headers of the fixed series, :class:`pydicom.Dataset`, whose patient and study are kept.
        moving: headers of the moving series. It is referred to by UIDs alone.

    Raises:
        InputError: when a series lacks UIDs, values are not finite or the file cannot be written.
    """
    from pydicom.dataset import Dataset

    check_to_write(path, field.ddf)
    check_to_write(path, alignment)
    check_source(fixed, "fixed")
    check_source(moving, "moving")
    target = _empty(fixed)
    item = Dataset()
    item.SourceFrameOfReferenceUID = moving[0].FrameOfReferenceUID
    item.ReferencedImageSequence = references(moving)
    item.RegistrationTypeCodeSequence = [_code(*_BY_CONTENT)]
    # Identities are said, too: some readers take both matrices for granted.
    item.PreDeformationMatrixRegistrationSequence = [_matrix_item(torch.eye(4, dtype=torch.float64))]
    item.PostDeformationMatrixRegistrationSequence = [_matrix_item(TO_RCS @ alignment.double() @ TO_RCS)]
    item.DeformableRegistrationGridSequence = [_grid_item(field)]
    target.DeformableRegistrationSequence = [item]
    refer_to(target, (fixed, moving))
    with replacing(path) as temporary:
        target.save_as(temporary, enforce_file_format=True)


def read_registration(path: str | Path) -> Transform:
    """Read a Deformable Spatial Registration object as a map between worlds.

    Args:
        path: of the file, whatever its name ends in.

    Returns:
        Registered (fixed) world to source (moving) world.

    Raises:
        InputError: when the file is missing, damaged, of another kind, holds several registrations or none, or leaves
            points undefined.
    """
    import pydicom

    path = Path(path)
    check_is_file(path)
    try:
        content = pydicom.dcmread(path)
    except Exception as error:  # pydicom lets many kinds through
        raise InputError(f"{path} cannot be read as DICOM ({first_line(error)}); copy it anew.") from error
    if content.get("SOPClassUID") != STORAGE:
        kind = getattr(content.get("SOPClassUID"), "name", "an unknown kind")
        raise InputError(f"{path} is {kind} of DICOM, but a Deformable Spatial Registration is expected.")
    items = [item for item in content.get("DeformableRegistrationSequence", []) if _first(item, _GRID) is not None]
    if len(items) != 1:
        raise InputError(f"{path} holds {len(items)} deformation grids, but exactly one is read.")
    try:
        before, after = (_matrix(items[0], name) for name in (_PRE, _POST))
        grid, offsets = _grid(_first(items[0], _GRID))
        # Offsets follow the first matrix; here a displacement comes before any.
        to_voxels = torch.linalg.inv((before @ grid.affine)[:3, :3]) @ TO_RCS[:3, :3]
    except (AttributeError, TypeError, ValueError, InputError, torch.linalg.LinAlgError) as error:
        raise InputError(f"{path} is a damaged registration ({first_line(error)}); export it anew.") from error
    if not bool(torch.isfinite(offsets).all()):
        raise InputError(f"{path} leaves the deformation undefined in a part of its grid (NaN), which is not read.")
    ddf = torch.einsum("rc,cijk->rijk", to_voxels.float(), offsets)
    return Transform((Field(grid, ddf[None]), Affine(after @ before)))


def _empty(fixed: Sequence[Any]) -> Any:
    """The object without its registration, in the patient, study and frame of reference of a series."""
    from highdicom.base import SOPClass
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    header = fixed[0]
    target = SOPClass(
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=generate_uid(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        sop_class_uid=STORAGE,
        instance_number=1,
        modality="REG",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description="deformable registration",
        **equipment(),
    )
    take_over(target, fixed)
    target.FrameOfReferenceUID = header.FrameOfReferenceUID
    target.PositionReferenceIndicator = header.get("PositionReferenceIndicator")
    target.Laterality = header.get("Laterality")
    target.ContentLabel = "REGISTRATION"
    target.ContentDescription = "maps points of the fixed series to points of the moving series"
    target.ContentCreatorName = None
    return target


def _code(value: str, scheme: str, meaning: str) -> Any:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _matrix_item(matrix: Tensor) -> Any:
    from pydicom.dataset import Dataset

    linear = matrix[:3, :3]
    deviation = (linear.T @ linear - torch.eye(3, dtype=matrix.dtype)).abs().max()
    item = Dataset()
    item.FrameOfReferenceTransformationMatrixType = "RIGID" if deviation < _RIGID else "AFFINE"
    item.FrameOfReferenceTransformationMatrix = _decimals(matrix.flatten())
    return item


def _decimals(values: Tensor) -> list[Any]:
    """Decimal strings, which have sixteen characters at most."""
    from pydicom.valuerep import DSfloat

    return [DSfloat(value, auto_format=True) for value in values.tolist()]


def _grid_item(field: Field) -> Any:
    from pydicom.dataset import Dataset

    grid, offsets = _storable(field)
    affine = TO_RCS @ grid.affine
    spacing = affine[:3, :3].norm(dim=0)
    item = Dataset()
    item.ImageOrientationPatient = _decimals((affine[:3, :2] / spacing[:2]).T.flatten())
    item.ImagePositionPatient = _decimals(affine[:3, 3])
    item.GridDimensions = list(grid.shape)
    item.GridResolution = spacing.tolist()
    item.VectorGridData = np.ascontiguousarray(offsets.permute(3, 2, 1, 0).numpy(), dtype="<f4").tobytes()
    return item


def _storable(field: Field) -> tuple[Grid, Tensor]:
    """A grid that DICOM has words for, and the displacements there, (3, *shape) float32 in LPS millimetres."""
    grid, ddf = field.grid, field.ddf.detach().cpu().float()
    if torch.det(grid.affine[:3, :3]) < 0:
        affine = grid.affine.clone()
        affine[:3, 3] += affine[:3, 2] * (grid.shape[2] - 1)
        affine[:3, 2].neg_()
        grid = Grid(grid.shape, affine)
        ddf = ddf.flip(-1) * torch.tensor([1.0, 1.0, -1.0]).view(1, 3, 1, 1, 1)
    upright = _upright(grid)
    if not grid.same_as(upright, _UPRIGHT):
        ddf, grid = resample_ddf(ddf, grid, upright), upright
    offsets = torch.einsum("rc,cijk->rijk", (TO_RCS @ grid.affine)[:3, :3].float(), ddf[0])
    return upright, offsets


def _upright(grid: Grid) -> Grid:
    """The grid of right angles that has a grid's first axis and plane, its distance of planes, and covers it."""
    axes = grid.affine[:3, :3]
    first = axes[:, 0] / axes[:, 0].norm()
    second = axes[:, 1] - (axes[:, 1] @ first) * first
    second = second / second.norm()
    frame = torch.stack([first, second, torch.linalg.cross(first, second)], dim=1)
    spacing = torch.stack([axes[:, 0] @ first, axes[:, 1] @ second, axes[:, 2] @ frame[:, 2]])
    last = torch.tensor(grid.shape, dtype=torch.float64) - 1
    corners = torch.cartesian_prod(*torch.stack([torch.zeros(3, dtype=torch.float64), last], dim=1)) @ axes.T @ frame
    low, high = corners.amin(0), corners.amax(0)
    i, j, k = (1 + int(n) for n in ((high - low) / spacing - _UPRIGHT).ceil())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = frame * spacing
    affine[:3, 3] = frame @ low + grid.affine[:3, 3]
    return Grid((i, j, k), affine)


def _first(item: Any, name: str) -> Any:
    """The item of a sequence of one, None where there is none."""
    found = item.get(name) or [None]
    return found[0]


def _matrix(item: Any, name: str) -> Tensor:
    """A matrix (4, 4) in RAS millimetres; the identity where it is not there."""
    found = _first(item, name)
    if found is None:
        return torch.eye(4, dtype=torch.float64)
    values = [float(value) for value in found.FrameOfReferenceTransformationMatrix]
    # plastimatch leaves out the last row.
    values += [0.0, 0.0, 0.0, 1.0][: 16 - len(values)]
    return TO_RCS @ torch.tensor(values, dtype=torch.float64).view(4, 4) @ TO_RCS


def _grid(item: Any) -> tuple[Grid, Tensor]:
    """Grid of a deformation, and its offsets (3, *shape) float32 in LPS millimetres."""
    row, column = torch.tensor([float(value) for value in item.ImageOrientationPatient], dtype=torch.float64).view(2, 3)
    spacing = torch.tensor([float(value) for value in item.GridResolution], dtype=torch.float64)
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.stack([row, column, torch.linalg.cross(row, column)], dim=1) * spacing
    affine[:3, 3] = torch.tensor([float(value) for value in item.ImagePositionPatient], dtype=torch.float64)
    i, j, k = (int(n) for n in item.GridDimensions)
    stored = np.frombuffer(item.VectorGridData, dtype="<f4").reshape(k, j, i, 3)
    offsets = torch.from_numpy(stored.astype(np.float32)).permute(3, 2, 1, 0)
    return Grid((i, j, k), TO_RCS @ affine), offsets

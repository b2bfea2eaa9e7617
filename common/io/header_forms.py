# SPDX-License-Identifier: Apache-2.0
"""Where a NIfTI header says that its voxels lie: which of its two forms counts, in which unit, and how it is stated.

A header may hold a sform (any affine map) and a qform (a rotation, with the voxel sizes of ``pixdim``), each with a
code that says which world it leads to, 0 for none. Readers choose differently; what is said of ITK here is what ITK 5.4
makes of headers of all codes.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from nibabel.spatialimages import HeaderDataError

from common.spatial.places import GRID_TOLERANCE, voxels_apart
from common.spatial.plane import is_in_plane, plane_affine

_LOGGER = logging.getLogger(__name__)
_UNIT_BITS = 7
_MILLIMETRES = {1: 1e3, 3: 1e-3}
"""Of NIfTI's units of length that are none: metres and microns. ITK converts them as here, nibabel does not."""
_SCANNER = 1
_ITK_SHEAR = 3e-4
"""Cosine between two axes up to which ITK takes them for a right angle."""
_SQUARE = 4 * float(np.finfo(np.float32).eps)
"""Error of the sum of squares of a quaternion's three numbers, which the fourth is computed from."""
ITK = "ITK (and so ANTs, SimpleITK and 3D Slicer)"
_named: set[str] = set()


def affine_of(file: Any, path: str | Path) -> np.ndarray:
    """The affine (4, 4), voxels to millimetres RAS+, of an opened NIfTI file.

    The sform where its code is above 0, else the qform where its code is above 0, else nibabel's: axes by the voxel
    sizes, the first one towards the left, centre at 0. A warning is logged, once per file, where both forms are set and
    lie apart, or where ITK finds the voxels elsewhere. Of an image of two dimensions only the plane counts, see
    :func:`common.spatial.plane.plane_affine`.
    """
    affine = np.array(file.affine, dtype=np.float64)
    _warn(file, affine, path)
    if len(file.shape) == 2:
        # Of the third axis, which has no unit, nothing is left.
        return plane_affine(torch.from_numpy(_in_millimetres(affine, file.header))).numpy()
    return _in_millimetres(affine, file.header)


def set_world(file: Any, affine: np.ndarray, code: int | str = "scanner") -> None:
    """State an affine as sform, and as qform where it has no shear, so that every reader finds the same.

    The sizes of the voxels are stated in any case.

    Args:
        file: nibabel's image.
        affine: (4, 4), voxels to millimetres RAS+.
        code: of both forms.
    """
    file.header.set_xyzt_units("mm")
    file.set_sform(affine, code=code)
    file.set_qform(affine, code=code)
    # Shears are left out of a qform.
    if _voxels_apart(file, affine, file.get_qform()) > GRID_TOLERANCE:
        file.set_qform(None, code="unknown")
        file.header["pixdim"][1:4] = voxel_sizes(affine)


def copy_world(file: Any, pattern: Any, affine: np.ndarray) -> None:
    """State an affine in a file that was made with the header of another one, of which codes of forms stay.

    Forms that hold it already stay as they are.

    Args:
        file: nibabel's image, with the header of ``pattern``.
        pattern: nibabel's image.
        affine: that of ``pattern``, as :func:`affine_of` gives it.
    """
    sform, qform = (_code(pattern.header, form) for form in ("sform", "qform"))
    other = _qform(pattern) if sform and qform else None
    is_stated = other is not None and np.array_equal(affine, pattern.affine)
    if other is None or not is_stated or _voxels_apart(pattern, affine, other) > GRID_TOLERANCE:
        set_world(file, affine, sform or qform or _SCANNER)
    file.header.set_xyzt_units("mm")


def _code(header: Any, form: str) -> int:
    return max(int(header[f"{form}_code"]), 0)


def _in_millimetres(affine: np.ndarray, header: Any) -> np.ndarray:
    scaled = affine.copy()
    scaled[:3] *= _MILLIMETRES.get(int(header["xyzt_units"]) & _UNIT_BITS, 1.0)
    return scaled


def _warn(file: Any, affine: np.ndarray, path: str | Path) -> None:
    if len(file.shape) == 2 and not is_in_plane(torch.from_numpy(affine)):
        say_once(
            path,
            "the axes of this image of two dimensions leave the plane of right and anterior; here they are laid into "
            f"it, from 0 on, but {ITK} refuses the file.",
        )
    # An affine that cannot be inverted is refused elsewhere.
    if len(file.shape) < 3 or not voxel_sizes(affine).min() > 0:
        return
    sentence = _disagreement(file, affine)
    # Whole data sets have no form at all: that is said of the first file.
    key = "" if not _code(file.header, "sform") and not _code(file.header, "qform") else None
    if sentence is not None:
        say_once(path, sentence, key)


def say_once(path: str | Path, sentence: str, key: str | None = None) -> None:
    """Log a warning on where an image lies, the first one of each image or key."""
    key = str(Path(path).absolute()) if key is None else key
    if key not in _named:
        _named.add(key)
        _LOGGER.warning("%s: %s", path, sentence)


def _disagreement(file: Any, affine: np.ndarray) -> str | None:
    """What a person has to know of two readings of one header, None where all agree."""
    sform, qform = (_code(file.header, form) for form in ("sform", "qform"))
    other = _qform(file) if sform and qform else None
    if sform and qform and other is None:
        return f"its qform (code {qform}) is damaged; the sform counts here, but {ITK} may take the qform."
    if other is not None and _voxels_apart(file, affine, other) > GRID_TOLERANCE:
        return (
            f"its sform (code {sform}) and its qform (code {qform}) lie up to {_apart(file, affine, other)} mm apart; "
            f"the sform counts here, {_itks_choice(affine, sform)}: write the right one into both."
        )
    itks = _itk_affine(file, affine)
    if itks is None:
        return f"the axes of its sform (code {sform}) are not at right angles: {ITK} cannot read it."
    if _voxels_apart(file, affine, itks) <= GRID_TOLERANCE:
        return None
    distance = _apart(file, affine, itks)
    if not sform:
        return (
            "neither sform nor qform is set: by nibabel's rule, which counts here, its centre is at 0 and its first "
            f"axis runs to the left; {ITK} puts it up to {distance} mm elsewhere (further files like this are not "
            "named)."
        )
    stated, sizes = (
        " x ".join(f"{size:.4g}" for size in part) for part in (voxel_sizes(affine), file.header["pixdim"][1:4])
    )
    return (
        f"its sform (code {sform}) has voxels of {stated}, its pixdim says {sizes}; the sform counts here, but {ITK} "
        f"takes the sizes of pixdim, up to {distance} mm elsewhere: write the right ones into both."
    )


def _itks_choice(affine: np.ndarray, sform: int) -> str:
    if _is_sheared(affine):
        return f"but {ITK} takes the qform, as the axes of the sform are not at right angles"
    if sform == _SCANNER:
        return f"and in recent {ITK}, with the voxel sizes of pixdim, but older versions take the qform"
    return f"but {ITK} takes the qform"


def _qform(file: Any) -> np.ndarray | None:
    try:
        return np.array(file.get_qform(), dtype=np.float64)
    except (ValueError, HeaderDataError):
        return None


def _itk_affine(file: Any, affine: np.ndarray) -> np.ndarray | None:
    """Where ITK finds the voxels of a header whose forms do not contradict each other, None where it refuses it."""
    header = file.header
    found = np.eye(4)
    if _code(header, "sform"):
        if _is_sheared(affine):
            return _qform(file) if _code(header, "qform") else None
        found[:, 3] = affine[:, 3]
        found[:3, :3] = affine[:3, :3] / voxel_sizes(affine)
    elif _code(header, "qform"):
        return affine
    else:
        found[:2] *= -1
    found[:3, :3] *= np.array(header["pixdim"][1:4], dtype=np.float64)
    return found


def _is_sheared(affine: np.ndarray) -> bool:
    directions = affine[:3, :3] / voxel_sizes(affine)
    return float(np.abs(directions.T @ directions - np.eye(3)).max()) > _ITK_SHEAR


def _apart(file: Any, one: np.ndarray, other: np.ndarray) -> str:
    ends = [(0.0, n - 1.0) for n in file.shape[:3]]
    corners = np.stack([axis.ravel() for axis in np.meshgrid(*ends, [1.0], indexing="ij")])
    places = [_in_millimetres(affine, file.header) @ corners for affine in (one, other)]
    return f"{np.linalg.norm(places[0] - places[1], axis=0).max():.3g}"


def _voxels_apart(file: Any, one: np.ndarray, other: np.ndarray) -> float:
    """As :func:`voxels_apart`, less what a qform cannot tell: small turns, where its first number is near 0."""
    shape, sizes = file.shape[:3], voxel_sizes(one)[: len(file.shape[:3])]
    apart = voxels_apart(shape, torch.from_numpy(np.array(one)), torch.from_numpy(np.array(other)))
    first = math.sqrt(max(1 - sum(float(file.header[f"quatern_{name}"]) ** 2 for name in "bcd"), 0))
    angle = 2 * _SQUARE / max(first, math.sqrt(_SQUARE))
    return apart - angle * float(np.linalg.norm(sizes * shape) / sizes.min())

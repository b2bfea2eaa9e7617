# SPDX-License-Identifier: Apache-2.0
"""Any file of a transform as a map between worlds: the tool is found, its module reads."""

from __future__ import annotations

from pathlib import Path

from common.checks import InputError
from common.io.dicom_registration import SUFFIX as DICOM_SUFFIX
from common.io.dicom_registration import read_registration
from common.io.file_kinds import is_dicom
from common.io.formats import mrtrix
from common.io.formats.conventions import check_known, check_stated
from common.io.formats.freesurfer import WARP_SUFFIXES, read_lta, read_warp
from common.io.formats.matrices import parse_matrix, read_matrix
from common.io.formats.nifti_vectors import read_nifti
from common.io.itk_transforms import IMAGE_SUFFIXES, ITK_SUFFIXES, read_itk, read_itk_field
from common.io.map_files import SUFFIX as MAP_SUFFIX
from common.io.map_files import read_map
from common.io.nifti import check_is_file
from common.io.nifti_files import NIFTI
from common.spatial.transform import Transform
from common.spatial.world import Grid

ARRAYS = (".npz", ".npy")
TRANSFORM_SUFFIXES = (*NIFTI, *ARRAYS, *ITK_SUFFIXES, *IMAGE_SUFFIXES, *WARP_SUFFIXES, ".lta", MAP_SUFFIX, DICOM_SUFFIX)
"""What is read, beside DICOM and matrices of text by any name."""
_LONGEST_MATRIX = 4096
"""Bytes; what is longer is no matrix of text."""
_REFUSED = {
    ".m3z": "a warp of FreeSurfer: mri_warp_convert --inm3z FILE --outlps OUT.nii.gz makes one that is read",
    ".x5": "a transform in X5: fsl_convert_x5 makes a matrix of FLIRT or a warp of FNIRT of it",
    ".xfm": "a transform of MINC: itk_convert_xfm FILE OUT.h5 makes one of ITK of it",
    **{suffix: "an image of MRtrix: mrconvert FILE OUT.nii.gz makes one that is read" for suffix in mrtrix.SUFFIXES},
}
REFUSED_SUFFIXES = tuple(_REFUSED)
_TEXTS = {
    b"(Transform ": "parameters of elastix: transformix -def all -tp FILE -out DIR writes the field that is read",
    b"MATLAB 5.0 MAT": "a file of MATLAB, not of ITK: save its matrix as text and state ras_matrix",
    b"MNI Transform File": _REFUSED[".xfm"],
}
"""How a file begins whose name says less."""


def read_world(
    path: Path, convention: str, reference: Grid | None = None, moving: Grid | None = None
) -> tuple[Transform, str] | None:
    """A transform whose place in the world is known.

    Args:
        path: of the file.
        convention: stated, one of :data:`common.io.formats.conventions.CONVENTIONS`.
        reference: grid of the fixed scan, for what has to be sampled or has no grid of its own.
        moving: grid of the moving scan, for FSL.

    Returns:
        Fixed world to moving world, and the convention found; None for fields in voxels.

    Raises:
        InputError: when the file is missing, damaged, not read, or contradicts the convention; the sentence says what
            it is and what to do.
    """
    check_known(convention)
    check_is_file(path)
    name = path.name.lower()
    refused = next((sentence for suffix, sentence in _REFUSED.items() if name.endswith(suffix)), None)
    if refused is not None:
        raise InputError(f"{path} is {refused}.")
    if is_dicom(path):
        check_stated(path, "a registration of DICOM", convention, ())
        return read_registration(path), "dicom"
    if name.endswith(ITK_SUFFIXES):
        return _text_or_itk(path, convention, reference, moving)
    if name.endswith(".lta"):
        check_stated(path, "a linear transform of FreeSurfer", convention, ())
        return Transform((read_lta(path),)), "lta"
    if name.endswith(MAP_SUFFIX):
        check_stated(path, "a map as a function", convention, ())
        return read_map(path), "map"
    if name.endswith(WARP_SUFFIXES):
        return read_warp(path, convention)
    if name.endswith(IMAGE_SUFFIXES):
        check_stated(path, "a vector image of ITK", convention, ("lps_mm",))
        return Transform((read_itk_field(path),)), "lps_mm"
    if name.endswith(NIFTI):
        return read_nifti(path, convention, reference, moving)
    if name.endswith(ARRAYS):
        return None
    matrix = parse_matrix(_start(path))
    if matrix is None:
        raise InputError(f"{path} is no field: expected one of {', '.join(TRANSFORM_SUFFIXES)}.")
    return Transform((read_matrix(path, matrix, convention, reference, moving),)), convention


def _text_or_itk(path: Path, convention: str, reference: Grid | None, moving: Grid | None) -> tuple[Transform, str]:
    start = _start(path)
    for mark, sentence in _TEXTS.items():
        if start.startswith(mark) or b"\n" + mark in start:
            raise InputError(f"{path} is {sentence}.")
    matrix = parse_matrix(start)
    if matrix is not None:
        return Transform((read_matrix(path, matrix, convention, reference, moving),)), convention
    check_stated(path, "an ITK transform file", convention, ("itk",))
    return read_itk(path, reference), "itk"


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_LONGEST_MATRIX)

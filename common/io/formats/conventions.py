# SPDX-License-Identifier: Apache-2.0
"""What can be stated of a file that does not say itself what its numbers mean."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from common.checks import InputError

MEANINGS: Mapping[str, str] = {
    "auto": "by name, shape, header and values of the file",
    "voxels": "displacements in voxels of the fixed grid, component k along array axis k",
    "learn2reg_half": "the same at half the resolution, as Learn2Reg 2021 has it",
    "lps_mm": "displacements, millimetres to the left, posterior, superior (ITK, ANTs, Greedy, elastix)",
    "ras_mm": "displacements, millimetres to the right, anterior, superior (SynthMorph, EasyReg, FreeSurfer, MRtrix)",
    "ras_positions": "positions in the moving scan's world, millimetres RAS (SPM y_, NiftyReg, MRtrix)",
    "fsl_relative": "displacements in FSL's millimetres (FNIRT); needs both scans",
    "fsl_absolute": "positions in FSL's millimetres (applywarp --abs); needs both scans",
    "flirt": "text matrix of FLIRT, moving to fixed in FSL's millimetres; needs both scans",
    "ras_matrix": "text matrix, fixed to moving, millimetres RAS (Greedy, NiftyReg, MRtrix)",
    "itk": "transform file of ITK",
}
"""Conventions that ``--convention`` takes, and what they mean."""
CONVENTIONS = tuple(MEANINGS)
VECTORS = ("voxels", "lps_mm", "ras_mm", "ras_positions", "fsl_relative", "fsl_absolute")
"""Those of one vector per voxel of the file's own grid."""
MATRICES = ("ras_matrix", "flirt")


def meanings() -> str:
    """One line for each convention, for --help."""
    return "\n".join(f"  {name:<15} {text}" for name, text in MEANINGS.items())


def check_known(convention: str) -> None:
    """Refuse a convention that there is not.

    Raises:
        InputError: naming those that there are.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"The convention {convention!r} is unknown; use one of {', '.join(CONVENTIONS)}.")


def check_stated(path: Path, what: str, stated: str, found: tuple[str, ...]) -> None:
    """Refuse a stated convention that a file contradicts.

    Args:
        path: of the file, for the message.
        what: the file is.
        stated: convention.
        found: conventions that the file can be read in.

    Raises:
        InputError: when what is stated is neither "auto" nor among them.
    """
    if stated not in ("auto", *found):
        choices = " or ".join(name for name in ("auto", *found) if name in CONVENTIONS)
        raise InputError(f"{path} is {what}, but --convention {stated} was stated: state {choices}.")

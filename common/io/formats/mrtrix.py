# SPDX-License-Identifier: Apache-2.0
"""MRtrix: the field that mrregister writes for both directions at once.

Its deformations (4D positions) and displacements say nothing in the header; both are RAS millimetres, which values or
the user tell. Facts: documentation of MRtrix3, and what mrtransform and warpconvert 3.0.3 make of such files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.checks import InputError

SUFFIXES = (".mif", ".mif.gz", ".mih")


def recognise(path: Path, file: Any) -> None:
    """Refuse the pair of half-way warps of mrregister.

    Raises:
        InputError: saying what makes one deformation of it.
    """
    if len(file.shape) == 5 and tuple(file.shape[3:]) == (3, 4):
        raise InputError(
            f"{path} of shape {file.shape} looks like a full warp of MRtrix, the way to the middle from both sides: "
            "warpconvert FILE warpfull2deformation -template FIXED OUT.nii.gz makes a deformation of it."
        )

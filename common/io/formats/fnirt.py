# SPDX-License-Identifier: Apache-2.0
"""FNIRT: warps and spline coefficients. Facts: documentation of FNIRT, agreement with fslpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checks import InputError
from common.io.formats.fsl import NEEDS_BOTH, fsl_frame
from common.io.formats.recognised import Recognised
from common.io.formats.splines import cubic_spline
from common.io.formats.vectors import field_of, vectors_of
from common.io.nifti import voxels_of
from common.spatial.transform import Transform
from common.spatial.world import Grid

DISPLACEMENT = 2006
_CUBIC = 2007
_REFUSED = {
    2008: "DCT coefficients of FNIRT",
    2009: "quadratic spline coefficients of FNIRT",
    2016: "spline coefficients of TOPUP",
    2017: "spline coefficients of TOPUP",
    2018: "a field of TOPUP",
}


def recognise(path: Path, file: Any) -> Recognised | None:
    """What a header with an intent of FSL says.

    Raises:
        InputError: naming what is not read, and what to do.
    """
    intent = int(file.header["intent_code"])
    if intent in _REFUSED:
        advice = "applytopup applies it" if "TOPUP" in _REFUSED[intent] else "fnirtfileutils --out makes a field of it"
        raise InputError(f"{path} holds {_REFUSED[intent]} (intent {intent}), which are not read: {advice}.")
    if intent == DISPLACEMENT:
        return Recognised("a warp of FNIRT", ("fsl_relative", "fsl_absolute"))
    if intent == _CUBIC:
        return Recognised("cubic spline coefficients of FNIRT", ("fsl_coefficients",), _read_coefficients)
    return None


def _read_coefficients(path: Path, file: Any, reference: Grid | None, moving: Grid | None) -> Transform:
    """The spline sampled on the reference; the affine that FNIRT began with, which the sform holds, is added to it."""
    if reference is None or moving is None:
        raise InputError(f"{path} holds spline coefficients of FNIRT and {NEEDS_BOTH}.")
    header = file.header
    made_for = tuple(int(header[f"qoffset_{axis}"]) for axis in "xyz")
    sizes = np.array([header[f"intent_p{n}"] for n in (1, 2, 3)], dtype=np.float64)
    # Sizes of voxels in single precision, which are often rounded to three decimals before.
    if made_for != reference.shape or not np.allclose(sizes, reference.spacing, rtol=1e-3):
        raise InputError(
            f"{path} was made for a fixed scan of {made_for} voxels of {tuple(np.round(sizes, 3).tolist())} mm, but "
            f"the reference has {reference.shape} of {tuple(round(n, 3) for n in reference.spacing)}: give that scan."
        )
    knots = np.array(header["pixdim"][1:4], dtype=np.float64)
    # The first coefficient lies one knot before the first voxel.
    places = [np.arange(n) / knot + 1 for n, knot in zip(reference.shape, knots, strict=True)]
    displacements = cubic_spline(voxels_of(file, path).reshape(*file.shape[:3], 3), places)
    # As fnirtfileutils: the affine acts on the fixed scan's own places, not on the displaced ones.
    backwards = torch.linalg.inv(torch.as_tensor(np.asarray(header.get_sform(), dtype=np.float64)))
    start = Grid(reference.shape, backwards @ fsl_frame(reference))
    positions = torch.from_numpy(displacements) + vectors_of(torch.zeros(1, 3, *start.shape), start, "ras_positions")
    return Transform((field_of(path, positions, reference, "fsl_absolute", moving),))

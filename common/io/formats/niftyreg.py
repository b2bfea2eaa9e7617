# SPDX-License-Identifier: Apache-2.0
"""NiftyReg: deformations, displacements and control points under the intent name NREG_TRANS.

Positions and displacements are RAS millimetres of the worlds of both scans. Facts: Modat et al. 2010 (CMPB 98:278), and
what reg_resample of NiftyReg 1.5.70 makes of such files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.checks import InputError
from common.io.formats.recognised import Recognised
from common.io.formats.splines import cubic_spline
from common.io.formats.vectors import field_of
from common.io.nifti import spatial_grid, voxels_of
from common.spatial.transform import Transform
from common.spatial.world import Grid

INTENT_NAME = b"NREG_TRANS"
DEFORMATION = 0
_DISPLACEMENT, _SPLINE = 1, 2
_VELOCITIES = {3: "positions of a velocity field", 4: "a velocity field", 5: "a velocity grid of cubic splines"}


def recognise(path: Path, file: Any) -> Recognised | None:
    """What a header of NiftyReg says.

    Raises:
        InputError: naming what is not read, and what to do.
    """
    if bytes(file.header["intent_name"].item())[: len(INTENT_NAME)] != INTENT_NAME:
        return None
    kind = int(file.header["intent_p1"])
    if kind in (DEFORMATION, _DISPLACEMENT):
        name = "displacement" if kind else "deformation"
        return Recognised(
            f"a {name} field of NiftyReg", ("ras_mm", "ras_positions") if kind else ("ras_positions", "ras_mm")
        )
    if kind == _SPLINE:
        return Recognised("a cubic spline grid of NiftyReg", ("niftyreg_spline",), _read_spline)
    what = _VELOCITIES.get(kind, f"something unknown (intent_p1 {kind})")
    raise InputError(
        f"{path} holds {what} of NiftyReg, which is not read: "
        "reg_transform -ref FIXED -def FILE OUT makes a deformation of it."
    )


def _read_spline(path: Path, file: Any, reference: Grid | None, moving: Grid | None) -> Transform:
    """Control points are positions; the spline is evaluated at the voxels of the reference."""
    if reference is None:
        raise InputError(
            f"{path} is a spline grid of NiftyReg, which has to be sampled: give the fixed scan as reference."
        )
    own = spatial_grid(file, path)
    between = torch.linalg.inv(own.affine) @ reference.affine
    turned = between[:3, :3] - torch.diag(between[:3, :3].diagonal())
    if float(turned.abs().max()) * max(reference.shape) > 1e-2:
        raise InputError(
            f"{path} is a spline grid of NiftyReg whose axes are turned against those of the reference: give the scan "
            "that it was made for, or reg_transform -ref REFERENCE -def FILE OUT."
        )
    steps = between[:3, :3].diagonal().numpy()
    starts = between[:3, 3].numpy()
    places = [np.arange(n) * step + start for n, step, start in zip(reference.shape, steps, starts, strict=True)]
    points = voxels_of(file, path).reshape(*own.shape, 3)
    if any(place.min() < 1 - 1e-3 or place.max() > n - 2 + 1e-3 for place, n in zip(places, own.shape, strict=True)):
        raise InputError(
            f"{path} is a spline grid of NiftyReg that does not cover the reference: give the scan that it was made "
            "for."
        )
    positions = torch.from_numpy(cubic_spline(points, places))
    return Transform((field_of(path, positions, reference, "ras_positions"),))

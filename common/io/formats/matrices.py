# SPDX-License-Identifier: Apache-2.0
"""Affine maps as 4x4 matrices of text, which do not say between what: Greedy, NiftyReg, MRtrix and FLIRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.formats.conventions import MATRICES, check_stated
from common.io.formats.fsl import NEEDS_BOTH, flirt_affine
from common.spatial.transform import Affine
from common.spatial.world import Grid

_LONGEST = 4000
"""Bytes; a matrix of text is shorter."""


def parse_matrix(content: bytes) -> Tensor | None:
    """The (4, 4) matrix that a text consists of, None where it is something else.

    Lines of a comment do not count; numbers may be separated by spaces, tabs or commas.
    """
    if len(content) > _LONGEST or b"\0" in content:
        return None
    lines = content.decode("utf-8", errors="replace").splitlines()
    rows = [
        line.replace(",", " ").split() for line in lines if line.strip() and not line.lstrip().startswith(("#", "%"))
    ]
    try:
        matrix = np.array([[float(cell) for cell in row] for row in rows], dtype=np.float64)
    except ValueError:
        return None
    return torch.from_numpy(matrix) if matrix.shape == (4, 4) else None


def read_matrix(path: Path, matrix: Tensor, convention: str, fixed: Grid | None, moving: Grid | None) -> Affine:
    """A matrix of text as a map of worlds.

    Args:
        path: of the file, for messages.
        matrix: (4, 4).
        convention: "ras_matrix" or "flirt".
        fixed: grid of the fixed scan, for "flirt".
        moving: grid of the moving scan, likewise.

    Raises:
        InputError: when neither is stated, a scan is missing, or the matrix is none of an affine map.
    """
    what = "a 4x4 matrix of text"
    check_stated(path, what, convention, MATRICES)
    if convention == "auto":
        raise InputError(
            f"{path} is {what}, which does not say what it maps: state --convention ras_matrix (Greedy, NiftyReg, "
            "MRtrix: fixed to moving scan, RAS millimetres) or flirt (FSL)."
        )
    if not bool(torch.isfinite(matrix).all()) or not torch.equal(matrix[3], torch.tensor([0.0, 0, 0, 1]).double()):
        raise InputError(f"{path} is no matrix of an affine map: its last row has to be 0 0 0 1.")
    if float(torch.linalg.svdvals(matrix[:3, :3]).min()) < 1e-6:
        raise InputError(f"{path} holds an affine map that cannot be inverted.")
    if convention == "ras_matrix":
        return Affine(matrix)
    if fixed is None or moving is None:
        raise InputError(f"{path} is a matrix of FLIRT and {NEEDS_BOTH}.")
    return flirt_affine(matrix, fixed, moving)

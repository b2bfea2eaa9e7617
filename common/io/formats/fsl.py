# SPDX-License-Identifier: Apache-2.0
"""FSL: its coordinates, and matrices of FLIRT.

FSL counts millimetres from the first voxel along the array axes; where the affine has a positive determinant, the first
axis is reversed ("scaled voxels, radiological"). Its transforms therefore need both scans. Facts: documentation of
FLIRT and FNIRT (Jenkinson et al. 2012, NeuroImage 62:782), agreement with fslpy and nitransforms.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.spatial.transform import Affine
from common.spatial.world import Grid

NEEDS_BOTH = (
    "needs both of its scans: give the fixed one as --reference and the moving one (apply.py --moving, or --target for "
    "landmarks), and before it goes into a chain, rewrite it with apply.py --save_as itk"
)


def fsl_frame(grid: Grid) -> Tensor:
    """(4, 4), voxels of a grid to FSL's millimetres."""
    frame = torch.diag(torch.tensor([*grid.spacing, 1.0], dtype=torch.float64))
    if float(torch.linalg.det(grid.affine[:3, :3])) > 0:
        frame[0, 0] *= -1
        frame[0, 3] = (grid.shape[0] - 1) * grid.spacing[0]
    return frame


def flirt_affine(matrix: Tensor, fixed: Grid, moving: Grid) -> Affine:
    """A matrix of FLIRT, which takes the moving scan to the fixed one in FSL's millimetres, as a map of worlds."""
    to_fsl = fsl_frame(fixed) @ torch.linalg.inv(fixed.affine)
    to_world = moving.affine @ torch.linalg.inv(fsl_frame(moving))
    return Affine(to_world @ torch.linalg.inv(matrix) @ to_fsl)

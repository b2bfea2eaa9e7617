# SPDX-License-Identifier: Apache-2.0
"""Images of two dimensions in the world of a scanner: slices of one voxel in the plane right and anterior.

Headers, and so grids, alignments and transforms, are three-dimensional. An image of two dimensions takes part in them
as a slice at height 0 that is a millimetre thick, and its displacements have a third component of 0. So one code serves
both, and files of two dimensions are made where they are read and written. Networks, losses and metrics see the image
itself, without the third axis. ITK reads the same places from headers of two dimensions.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

_Array = TypeVar("_Array", Tensor, np.ndarray)
_UPRIGHT = 0.99
"""Share of a voxel's side that has to lie in the plane: 8 degrees."""


def is_in_plane(affine: Tensor) -> bool:
    """Whether the first two axes of an affine (4, 4) run along right and anterior rather than up."""
    axes = affine[:3, :2]
    return bool((axes[:2].norm(dim=0) >= _UPRIGHT * axes.norm(dim=0)).all())


def plane_affine(affine: Tensor) -> Tensor:
    """What of an affine counts in two dimensions.

    Args:
        affine: (4, 4), voxels to millimetres RAS+, of whatever third axis.

    Returns:
        (4, 4) float64: the first two axes and the origin within the plane, the third axis of one millimetre at 0. Axes
        that leave the plane (a sagittal slice) are laid there: the first to the right, the second to the front, from 0.
    """
    affine = affine.to(torch.float64)
    flat = torch.eye(4, dtype=torch.float64, device=affine.device)
    if is_in_plane(affine):
        flat[:2, :2], flat[:2, 3] = affine[:2, :2], affine[:2, 3]
    else:
        flat[:2, :2] = affine[:3, :2].norm(dim=0).diag()
    return flat


def downwards(affine: Tensor) -> bool:
    """Whether the second axis of an image of two dimensions runs down a picture: to the back, as in PNG."""
    return float(affine[1, 1]) < 0


def lifted(image: Tensor, dims: int) -> Tensor:
    """An image or label map (..., *spatial) of two dimensions as a slice (..., W, H, 1); of three as it is."""
    return image[..., None] if dims == 2 else image


def lifted_field(ddf: Tensor, dims: int) -> Tensor:
    """Displacements (..., 2, W, H) of two dimensions as those of a slice, (..., 3, W, H, 1); of three as they are."""
    return ddf if dims == 3 else torch.cat([ddf, torch.zeros_like(ddf[..., :1, :, :])], dim=-3)[..., None]


def laid(image: _Array, dims: int) -> _Array:
    """The opposite of :func:`lifted`."""
    return image[..., 0] if dims == 2 else image


def laid_field(ddf: Tensor, dims: int) -> Tensor:
    """The opposite of :func:`lifted_field`."""
    return ddf if dims == 3 else ddf[..., :2, :, :, 0]


def on_slices(values: Tensor, dims: int) -> Tensor:
    """:func:`lifted` of an image (1, *spatial), :func:`lifted_field` of vectors (d, *spatial)."""
    return (lifted if len(values) == 1 else lifted_field)(values, dims)


def in_plane(values: Tensor, dims: int) -> Tensor:
    """The opposite of :func:`on_slices`."""
    return (laid if len(values) == 1 else laid_field)(values, dims)

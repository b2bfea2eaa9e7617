# SPDX-License-Identifier: Apache-2.0
"""Two images that meet half-way: maps that are symmetric and inverse consistent by how they are composed.

Source: Honkamaa and Marttinen, "SITReg", MELBA 2024:026 (arXiv 2303.10211), section on the multi-resolution updates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from common.spatial.fixed_point import Solver, invert_contraction
from common.spatial.warp import compose


class Halves(NamedTuple):
    """Displacements, (B, d, *spatial) in voxels, between the two images and the place where they meet.

    Attributes:
        left: from the meeting place to the first image: what the first image is sampled by.
        right: from the meeting place to the second image.
        left_inverse: back from the first image.
        right_inverse: back from the second image.
    """

    left: Tensor
    right: Tensor
    left_inverse: Tensor
    right_inverse: Tensor

    def between(self) -> tuple[Tensor, Tensor]:
        """From the second image's grid to the first image, and the way back."""
        return compose(self.left, self.right_inverse), compose(self.right, self.left_inverse)


def advance(known: Halves | None, first: Tensor, second: Tensor, solver: Solver) -> Halves:
    """Move both halves on by a pair of invertible updates, of which each half gets one and the other's inverse.

    With updates a and b, ``left`` becomes left o a o b^-1 and ``right`` right o b o a^-1; the inverses follow from the
    other side. Chains are evaluated point by point and put on the grid once. Where images and updates are exchanged,
    left and right are, bit by bit.

    Args:
        known: so far; None for the identity, whose samplings are left out.
        first: update a, (B, d, *spatial), in voxels, with an inverse as :func:`invert_contraction` finds it.
        second: update b.
        solver: of the inverses.
    """
    first_inverse, second_inverse = (invert_contraction(update, solver) for update in (first, second))
    step, step_inverse = compose(first, second_inverse), compose(second, first_inverse)
    if known is None:
        return Halves(step, step_inverse, step_inverse, step)
    return Halves(
        compose(known.left, step),
        compose(known.right, step_inverse),
        compose(second, compose(first_inverse, known.left_inverse)),
        compose(first, compose(second_inverse, known.right_inverse)),
    )


def at_level(ddf: Tensor, factor: int) -> Tensor:
    """A displacement at the voxel centres of a coarser grid with the same outer edges, in voxels of that grid.

    Args:
        ddf: (B, d, *spatial), in voxels of the fine grid.
        factor: coarse voxel size in fine voxels, 1 or even: the centres of the coarse grid then lie midway between fine
            voxels; beyond the last one the border continues.

    Returns:
        (B, d, *(ceil(n / factor) for n in spatial)).
    """
    if factor == 1:
        return ddf
    for axis in range(2, ddf.ndim):
        size = ddf.shape[axis]
        middle = torch.arange(factor // 2, size + factor // 2, factor, device=ddf.device)
        low, high = ((middle - side).clamp(max=size - 1) for side in (1, 0))
        ddf = 0.5 * (ddf.index_select(axis, low) + ddf.index_select(axis, high))
    return ddf / factor

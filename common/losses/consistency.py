# SPDX-License-Identifier: Apache-2.0
"""Consistency of the maps between three subjects: going round in a circle leads back to where one started."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.masked import INSIDE
from common.spatial import warp
from common.spatial.affine import normalised_spacing

CYCLE = 3
"""Pairs of a circle, one after the other in the batch."""


class CycleConsistencyLoss(nn.Module):
    """Mean squared length of the way round three subjects, in both directions (SITReg v2).

    The batch holds circles of three pairs, (1, 2), (2, 3), (3, 1), as the strategy "cycles" of
    :class:`common.data.PairSampler` draws them. Each way round begins on the grid of image 1 and is followed point by
    point. A point counts while it is inside the mask of each image that it comes to; the mean is that over all voxels.
    Lengths are in units of half the image's longest extent.

    Args:
        spacing: voxel size along each axis; None for cubes.
    """

    def __init__(self, spacing: Sequence[float] | None = None) -> None:
        super().__init__()
        self.spacing = spacing

    def forward(self, ddf: Tensor, inverse_ddf: Tensor, moving_mask: Tensor, fixed_mask: Tensor) -> Tensor:
        """Penalise what is left of both ways round.

        Args:
            ddf: (3 n, d, *spatial), in voxels, of n circles.
            inverse_ddf: the same shape.
            moving_mask: (3 n, 1, *spatial), 0 and 1.
            fixed_mask: the same shape.

        Returns:
            A scalar >= 0.

        Raises:
            InputError: when the batch holds no whole circles.
        """
        if len(ddf) % CYCLE:
            raise InputError(
                f"CycleConsistencyLoss got a batch of {len(ddf)} pairs; it needs circles of {CYCLE}: make batch_size a "
                f"multiple of {CYCLE} and draw the pairs with the strategy 'cycles'."
            )
        there = self.measure(*self.cycle(ddf, fixed_mask, reverse=True))
        return 0.5 * (there + self.measure(*self.cycle(inverse_ddf, moving_mask)))

    def cycle(self, fields: Tensor, masks: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Follow three fields one after the other.

        Args:
            fields: (3 n, d, *spatial), in voxels.
            masks: (3 n, 1, *spatial), of the image on whose grid each field lies.
            reverse: whether to begin with the third.

        Returns:
            (n, d, *spatial), where the way ends, as a displacement in voxels, and (n, 1, *spatial), 0 or 1.
        """
        where = torch.zeros_like(fields[::CYCLE])
        inside = torch.ones_like(masks[::CYCLE])
        for step in reversed(range(CYCLE)) if reverse else range(CYCLE):
            mask = warp(masks[step::CYCLE], where.detach(), padding_mode="zeros")
            inside = inside * (mask >= INSIDE)
            where = where + warp(fields[step::CYCLE], where)
        return where, inside

    def measure(self, ddf: Tensor, inside: Tensor) -> Tensor:
        """Mean over all voxels of the squared length where ``inside`` is 1."""
        scale = ddf.new_tensor(normalised_spacing(ddf.shape[2:], self.spacing)).view(1, -1, *[1] * (ddf.ndim - 2))
        return (inside * (scale * ddf).square().sum(dim=1, keepdim=True)).mean()

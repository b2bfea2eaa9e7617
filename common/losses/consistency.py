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
    """Mean squared length of the way round three subjects, in both directions (SITReg's second training).

    The batch holds circles of three pairs, (1, 2), (2, 3), (3, 1), as the strategy "cycles" of
    :class:`common.data.PairSampler` draws them. Each way round begins on the grid of image 1 and is followed point by
    point. A point counts while it is inside the mask of each image that it comes to; the mean is that over all voxels.
    Lengths are in units of half the image's longest extent. In the first epoch circles gain their weight, from 0 to 1.

    Args:
        spacing: voxel size along each axis; None for cubes.
        rise: pairs of the first epoch, over all processes; 0 for circles that have their whole weight at once.
    """

    def __init__(self, spacing: Sequence[float] | None = None, rise: int = 0) -> None:
        super().__init__()
        self.spacing = spacing
        self.rise = rise

    def forward(
        self, ddf: Tensor, inverse_ddf: Tensor, moving_mask: Tensor, fixed_mask: Tensor, draw: Tensor | None = None
    ) -> Tensor:
        """Penalise what is left of both ways round.

        Args:
            ddf: (3 n, d, *spatial), in voxels, of n circles.
            inverse_ddf: the same shape.
            moving_mask: (3 n, 1, *spatial), above 0 where the moving image counts.
            fixed_mask: the same shape.
            draw: (3 n, 3), seed, epoch from 1 and index in the epoch of each pair: what the weight depends on, so that
                it is the same on any number of processes and after an interruption; None for the whole weight.

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
        back = self.measure(*self.cycle(inverse_ddf, moving_mask))
        return (0.5 * self._weights(draw).to(there) * (there + back)).mean()

    def _weights(self, draw: Tensor | None) -> Tensor:
        """Of each circle: the share of the first epoch that is over after it."""
        if draw is None or self.rise == 0:
            return torch.ones(1)
        last = draw[CYCLE - 1 :: CYCLE]
        return torch.where(last[:, 1] > 1, 1.0, (last[:, 2] + 1) / self.rise)

    def cycle(self, fields: Tensor, masks: Tensor, reverse: bool = False) -> tuple[Tensor, Tensor]:
        """Follow three fields one after the other.

        Args:
            fields: (3 n, d, *spatial), in voxels.
            masks: (3 n, 1, *spatial), of the image on whose grid each field lies, above 0 inside.
            reverse: whether to begin with the third.

        Returns:
            (n, d, *spatial), where the way ends, as a displacement in voxels, and (n, 1, *spatial), 0 or 1.
        """
        where = torch.zeros_like(fields[::CYCLE])
        masks = (masks > 0).to(fields.dtype)
        inside = torch.ones_like(masks[::CYCLE])
        for step in reversed(range(CYCLE)) if reverse else range(CYCLE):
            mask = warp(masks[step::CYCLE], where.detach(), padding_mode="zeros")
            inside = inside * (mask >= INSIDE)
            where = where + warp(fields[step::CYCLE], where)
        return where, inside

    def measure(self, ddf: Tensor, inside: Tensor) -> Tensor:
        """Of each circle the mean over all voxels of the squared length where ``inside`` is 1, (n,)."""
        scale = ddf.new_tensor(normalised_spacing(ddf.shape[2:], self.spacing)).view(1, -1, *[1] * (ddf.ndim - 2))
        return (inside * (scale * ddf).square().sum(dim=1, keepdim=True)).flatten(1).mean(1)

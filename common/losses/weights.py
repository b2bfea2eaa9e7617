# SPDX-License-Identifier: Apache-2.0
"""Weights of voxels in a comparison of images, and the comparison that makes them of masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.spatial import warp


def check_weight(loss: str, pred: Tensor, weight: Tensor) -> None:
    """Refuse weights that are not one per voxel of the images.

    Raises:
        InputError: naming the loss and the shapes.
    """
    if weight.shape != (pred.shape[0], 1, *pred.shape[2:]):
        raise InputError(
            f"{loss} got images of shape {tuple(pred.shape)} and a weight of shape {tuple(weight.shape)}; give one "
            "weight per voxel, (batch, 1, *spatial), on the grid of the images."
        )


def sample_factors(weight: Tensor, channels: int) -> Tensor:
    """What makes of weights the share of each voxel in the mean over samples and channels of weighted means.

    Args:
        weight: (B, 1, *spatial), float32 or float64, from 0 to 1.
        channels: of the images.

    Returns:
        (B,), 0 for a sample without weights.
    """
    totals = weight.flatten(1).sum(1, dtype=torch.float64) * (len(weight) * channels)
    return torch.where(totals > 0, totals.reciprocal(), 0).to(weight.dtype)


class WeightedLoss(nn.Module):
    """A comparison of images that masks of the fixed and the moving image weigh voxel by voxel.

    A voxel's weight is that of the fixed mask times that of the moving one at ``x + ddf(x)``, interpolated linearly.
    It is 0 where no voxel that it is interpolated from lies inside the moving mask, with all its neighbours: so neither
    values nor slopes of the warped image come from what has no weight. It fades to 0 outside the moving image. The
    edges of masks are no edges of the images, unlike in :class:`common.losses.MaskedLoss`. No gradient goes through the
    masks. Without masks the images are compared as they are.

    Args:
        loss: takes the warped image, the fixed one and, where there is a mask, the weight (B, 1, *spatial), such as
            those of :func:`common.losses.similarity`.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        warped: Tensor,
        fixed: Tensor,
        ddf: Tensor,
        fixed_mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> Tensor:
        """Compare the images.

        Args:
            warped: (B, C, *spatial), the moving image at ``x + ddf(x)``.
            fixed: the same shape.
            ddf: (B, d, *spatial) in voxels.
            fixed_mask: (B, 1, *spatial) from 0 to 1, any type; None counts all voxels alike.
            moving_mask: (B, 1, *spatial'), the same of the moving image.

        Raises:
            InputError: for a mask of another grid, and when no voxel of a sample has a weight.
        """
        weight = None
        with torch.no_grad():
            if fixed_mask is not None:
                check_weight("WeightedLoss", warped, fixed_mask)
                weight = fixed_mask.to(ddf.dtype)
            if moving_mask is not None:
                seen = _warped_mask(moving_mask.to(ddf.dtype), ddf)
                weight = seen if weight is None else weight * seen
            if weight is not None and not bool((weight > 0).flatten(1).any(1).all()):
                raise InputError(
                    "No voxel of a pair has a weight: look at the masks, and whether they lie on each other."
                )
        result: Tensor = self.loss(warped, fixed) if weight is None else self.loss(warped, fixed, weight)
        return result


def _warped_mask(mask: Tensor, ddf: Tensor) -> Tensor:
    if mask.shape[:2] != (len(ddf), 1) or mask.ndim != ddf.ndim:
        raise InputError(
            f"WeightedLoss got a moving mask of shape {tuple(mask.shape)} for a field of shape {tuple(ddf.shape)}; "
            "give (batch, 1, *spatial) of the moving image."
        )
    channels = torch.cat([mask, _interior(mask > 0).to(mask.dtype)], dim=1)
    value, interior = warp(channels, ddf, padding_mode="zeros").split(1, dim=1)
    return value * (interior > 0)


def _interior(mask: Tensor) -> Tensor:
    """Voxels all of whose neighbours, corners included, are in the mask; outside the image there are none."""
    for axis in range(2, mask.ndim):
        last = mask.shape[axis] - 1
        found = mask.clone()
        found.narrow(axis, 0, last).logical_and_(mask.narrow(axis, 1, last))
        found.narrow(axis, 1, last).logical_and_(mask.narrow(axis, 0, last))
        mask = found
    return mask

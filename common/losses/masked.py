# SPDX-License-Identifier: Apache-2.0
"""A comparison of images where both exist, as VFA and SITReg are trained with, and one over several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.spatial import warp

INSIDE = 0.999
"""Where linear interpolation made a mask of 0 and 1 smaller than this, a voxel that it came from is outside."""


class MaskedLoss(nn.Module):
    """A loss of two images that are set to 0 where the moving image has not been seen, or a mask says so.

    A voxel counts where the fixed mask is above 0, and the moving mask is so at ``x + ddf(x)``, which it is nowhere
    outside the moving image. An image whose background is 0 is a mask of its own. No gradient goes through the masks.
    As in the published codes their edges become edges of both images.

    Args:
        loss: takes the warped and the fixed image.
        mode: which voxels of the moving mask have to be above 0: the "nearest" (VFA), or all those that the image is
            interpolated from ("bilinear", SITReg).
    """

    def __init__(self, loss: nn.Module, mode: str = "nearest") -> None:
        super().__init__()
        self.loss = loss
        self.mode = mode

    def forward(
        self,
        warped: Tensor,
        fixed: Tensor,
        ddf: Tensor,
        fixed_mask: Tensor | None = None,
        moving_mask: Tensor | None = None,
    ) -> Tensor:
        """Compare what is left of the images.

        Args:
            warped: (B, C, *spatial), the moving image at ``x + ddf(x)``.
            fixed: the same shape.
            ddf: (B, d, *spatial) in voxels.
            fixed_mask: (B, 1, *spatial), above 0 where the fixed image counts; None for all of it.
            moving_mask: (B, 1, *spatial'), the same of the moving image.

        Raises:
            InputError: when nothing is left of a pair.
        """
        with torch.no_grad():
            seen = torch.ones_like(warped[:, :1]) if moving_mask is None else (moving_mask > 0).to(warped.dtype)
            mask = warp(seen, ddf, mode=self.mode, padding_mode="zeros") >= INSIDE
            mask = mask if fixed_mask is None else mask & (fixed_mask > 0)
            if not bool(mask.flatten(1).any(1).all()):
                raise InputError(
                    "Nothing of the fixed image lies where the moving one does: look at both and at masks."
                )
        result: Tensor = self.loss(warped * mask, fixed * mask)
        return result


class MultiScaleLoss(nn.Module):
    """Mean of losses of two images, each on images half as large as those of the one before.

    Images shrink by averages of three voxels per axis, two apart, of the voxels that there are.

    Args:
        losses: one per scale, finest first.
    """

    def __init__(self, losses: Sequence[nn.Module]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare images (B, C, *spatial)."""
        pool = F.avg_pool2d if pred.ndim == 4 else F.avg_pool3d
        values = []
        for scale, loss in enumerate(self.losses):
            if scale:
                pred, target = (pool(x, 3, 2, 1, count_include_pad=False) for x in (pred, target))
            values.append(loss(pred, target))
        return torch.stack(values).mean()

# SPDX-License-Identifier: Apache-2.0
"""A comparison of images where both exist, and one over several scales, as VFA is trained with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.checks import InputError
from common.spatial import warp


class MaskedLoss(nn.Module):
    """A loss of two images that are set to 0 where the moving image has not been seen, or a mask says so.

    A voxel counts where the fixed mask does, and the nearest voxel of the moving mask at ``x + ddf(x)``, which is 0
    outside the moving image. No gradient goes through the masks. As in the published code their edges become edges of
    both images.

    Args:
        loss: takes the warped and the fixed image.
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
        """Compare what is left of the images.

        Args:
            warped: (B, C, *spatial), the moving image at ``x + ddf(x)``.
            fixed: the same shape.
            ddf: (B, d, *spatial) in voxels.
            fixed_mask: (B, 1, *spatial), 0 where the fixed image does not count; None for all of it.
            moving_mask: (B, 1, *spatial'), the same of the moving image.

        Raises:
            InputError: when nothing is left of a pair.
        """
        with torch.no_grad():
            seen = torch.ones_like(warped[:, :1]) if moving_mask is None else moving_mask.to(warped.dtype)
            mask = warp(seen, ddf, mode="nearest", padding_mode="zeros")
            mask = mask if fixed_mask is None else mask * fixed_mask
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

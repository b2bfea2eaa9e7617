# SPDX-License-Identifier: Apache-2.0
"""A comparison of images of something that is pressed together where its volume shrinks, such as air in a lung."""

from __future__ import annotations

from torch import Tensor, nn

from common.spatial import cell_determinant


class IntensityConservingLoss(nn.Module):
    """A loss of the fixed image and of the warped one times the change of volume (uniGradICON).

    The change is the determinant of backward differences, of every voxel but the first ones of each axis; as published
    it meets the images one voxel before, from which the last ones are left out. The gradient goes through it, too.

    Args:
        loss: takes the warped and the fixed image, and a mask where one is given.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, warped: Tensor, fixed: Tensor, ddf: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compare.

        Args:
            warped: (B, C, *spatial), the moving image at ``x + ddf(x)``, two voxels or more along each axis.
            fixed: the same shape.
            ddf: (B, d, *spatial), in voxels.
            mask: (B, 1, *spatial), for the loss.
        """
        images = [_without_last(warped) * cell_determinant(ddf), _without_last(fixed)]
        result: Tensor = self.loss(*images, *([] if mask is None else [_without_last(mask)]))
        return result


def _without_last(image: Tensor) -> Tensor:
    for axis in range(2, image.ndim):
        image = image.narrow(axis, 0, image.shape[axis] - 1)
    return image

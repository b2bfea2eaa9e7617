# SPDX-License-Identifier: Apache-2.0
"""Correlation of whole images, its gradient computed with the value, alone and beside that of small windows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
from common.losses.lncc import LNCCLoss
from common.losses.weights import check_weight


class NCCLoss(nn.Module):
    """``1 - mean(r)`` with Pearson's r of all values of each sample and channel (ICON, NePhi).

    There is no epsilon. Where an image has one value alone, r counts as 0 and has no gradient, while the published form
    is NaN. The gradient is exact and cannot be differentiated again.
    """

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *any), voxels of an image or its values at points.
            target: the same shape.
            weight: (B, 1, *any) from 0 to 1, of each value in means, variances and covariance; one of weight 0 may have
                any value but NaN and infinity, and of a sample without weights r is 0. None counts all alike.

        Returns:
            Scalar from 0 to 2.

        Raises:
            InputError: when the shapes differ.
        """
        check_alike("NCCLoss", pred, target)
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        wanted = [needs_gradient(image) for image in images]
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            if weight is not None:
                check_weight("NCCLoss", pred, weight)
                weight = weight.to(dtype).flatten(2)
            (one, one_size), (other, other_size) = (_unit(image.flatten(2), weight) for image in images)
            r = (one * other).sum(2, keepdim=True)
            slopes = [(r * one - other) * (one_size / r.numel()), (r * other - one) * (other_size / r.numel())]
            if weight is not None:
                slopes = [slope.mul_(weight.sqrt()) for slope in slopes]
        gradients = [slope.view(pred.shape) if asked else None for slope, asked in zip(slopes, wanted, strict=True)]
        return with_gradient(1 - r.mean(), images, gradients)


class LocalAndGlobalLoss(nn.Module):
    """``1 - mean(cc) + 2 (1 - mean(r))``: squared correlation within small windows and Pearson's r of whole images.

    Windows find the edges of tissues, whatever slow change of brightness lies over them, but what they see in one is
    much the same for any two tissues of different brightness. The correlation of whole images knows which is which. It
    has the sign of the contrast, and one scale and one shift of all intensities make no difference to it.

    Args:
        kernel_size: of the windows, see :class:`common.losses.LNCCLoss`.
        weight: of the whole images, beside 1 for the windows.
    """

    def __init__(self, kernel_size: int = 5, weight: float = 2.0) -> None:
        super().__init__()
        self.windows, self.whole, self.weight = LNCCLoss(kernel_size=kernel_size), NCCLoss(), weight

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), 2D or 3D, any intensities; usually the warped moving image.
            target: the same shape.
            weight: (B, 1, *spatial) from 0 to 1, as in both parts; None counts all voxels alike.

        Returns:
            Scalar: 0 for alike images, 3 for those that have nothing in common, up to 5.

        Raises:
            InputError: when the shapes differ or have another number of axes.
        """
        value: Tensor = self.windows(pred, target, weight) + self.weight * self.whole(pred, target, weight)
        return value


def _unit(values: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (B, C, N) less their mean and of length 1, and one by the length they had; both 0 where that is 0.

    With weights (B, 1, N) the values are multiplied by the root of these, whose squares then are weighted.
    """
    if weight is None:
        centred, whole = values - values.mean(2, keepdim=True), values
    else:
        total = weight.sum(2, keepdim=True)
        root = weight.sqrt()
        mean = (values * weight).sum(2, keepdim=True) / total.where(total > 0, 1)
        centred, whole = (values - mean).mul_(root), values * root
    size = centred.norm(dim=2, keepdim=True)
    # What rounding leaves of a constant is no image.
    varies = size > torch.finfo(values.dtype).eps * whole.norm(dim=2, keepdim=True)
    reciprocal = torch.where(varies, 1 / size, 0)
    return centred * reciprocal, reciprocal

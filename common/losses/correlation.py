# SPDX-License-Identifier: Apache-2.0
"""Correlation of whole images, its gradient computed with the value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
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
            weight: (B, 1, *any), 0 or more: what each voxel counts in means and products; None for all alike.

        Returns:
            Scalar from 0 to 2.

        Raises:
            InputError: when the shapes differ.
        """
        check_alike("NCCLoss", pred, target)
        if weight is not None:
            check_weight("NCCLoss", pred, weight)
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        wanted = [needs_gradient(image) for image in images]
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            root = None if weight is None else weight.to(dtype).sqrt().flatten(2)
            (one, one_size), (other, other_size) = (_unit(image.flatten(2), root) for image in images)
            r = (one * other).sum(2, keepdim=True)
            slopes = (r * one - other) * (one_size / r.numel()), (r * other - one) * (other_size / r.numel())
            slopes = slopes if root is None else (slopes[0] * root, slopes[1] * root)
        gradients = [slope.view(pred.shape) if asked else None for slope, asked in zip(slopes, wanted, strict=True)]
        return with_gradient(1 - r.mean(), images, gradients)


def _unit(values: Tensor, root: Tensor | None) -> tuple[Tensor, Tensor]:
    """Values (B, C, N) less their mean and of length 1, and one by the length they had; both 0 where that is 0.

    With the roots (B, 1, N) of weights the mean is the weighted one, and the rest is multiplied by them.
    """
    if root is None:
        centred = values - values.mean(2, keepdim=True)
    else:
        squares = root.square()
        totals = squares.sum(2, keepdim=True)
        mean = (squares * values).sum(2, keepdim=True) / torch.where(totals > 0, totals, 1)
        values = values * root
        centred = values - mean * root
    size = centred.norm(dim=2, keepdim=True)
    # What rounding leaves of a constant is no image.
    varies = size > torch.finfo(values.dtype).eps * values.norm(dim=2, keepdim=True)
    reciprocal = torch.where(varies, 1 / size, 0)
    return centred * reciprocal, reciprocal

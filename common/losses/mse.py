# SPDX-License-Identifier: Apache-2.0
"""Mean squared difference of images, its gradient computed with the value."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
from common.losses.weights import check_weight, sample_factors


class MSELoss(nn.Module):
    """Mean squared difference, as ``torch.nn.MSELoss`` has it, with weights of voxels.

    Of each sample it is the weighted mean over its voxels, so that samples count alike whatever part of them does. The
    gradient is exact and cannot be differentiated again.
    """

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), intensities in one unit with those of the target.
            target: the same shape.
            weight: (B, 1, *spatial) from 0 to 1; a voxel of weight 0 may have any value but NaN and infinity, and of
                a sample without weights the difference is 0. None counts all alike.

        Returns:
            Scalar >= 0, float32 (float64 if an image is).

        Raises:
            InputError: when the shapes differ.
        """
        check_alike("MSELoss", pred, target)
        if weight is not None:
            check_weight("MSELoss", pred, weight)
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        wanted = [needs_gradient(image) for image in images]
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            difference = images[0] - images[1]
            # The weight comes first: the square of what is weighed by 0 may be infinite.
            slope = difference * (1 / pred.numel() if weight is None else _shares(weight.to(dtype), pred))
            value = difference.mul_(slope).sum()
            gradients: list[Tensor | None] = [None, None]
            for i, factor in ((0, 2), (1, -2)):
                if wanted[i]:
                    gradients[i] = slope * factor if all(wanted) else slope.mul_(factor)
        return with_gradient(value, images, gradients)


def _shares(weight: Tensor, pred: Tensor) -> Tensor:
    """(B, 1, *spatial), of the mean."""
    return weight * sample_factors(weight, pred.shape[1]).view(-1, *[1] * (pred.ndim - 1))

# SPDX-License-Identifier: Apache-2.0
"""Gaussian windows as ICON has them, and the comparison of images that are blurred by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.losses.closed_form import computing_dtype


def gaussian_blur(image: Tensor, sigma: int) -> Tensor:
    """Blur along all spatial axes with zeros outside, so that values fall off towards the border.

    Args:
        image: (B, C, *spatial), float32 or float64.
        sigma: standard deviation in voxels; the window has 4 sigma + 1 and a sum of 1.
    """
    reach = 2 * sigma
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64, device=image.device)
    window = torch.exp(-0.5 * (offsets / sigma) ** 2)
    window = (window / window.sum()).to(image.dtype)

    def matrix(n: int) -> Tensor:
        voxels = torch.arange(n, device=image.device)
        places = voxels - voxels[:, None] + reach
        inside = (places >= 0) & (places <= 2 * reach)
        return window[places.clamp(0, 2 * reach)] * inside

    return along_axes(image, matrix)


def along_axes(image: Tensor, matrix: Callable[[int], Tensor]) -> Tensor:
    """A window along one spatial axis after the other, as products with matrices, which are fast for any window.

    Args:
        image: (B, C, *spatial).
        matrix: makes of n that (n, n) which takes n voxels of a line to what becomes of them.
    """
    for axis in range(2, image.ndim):
        lines = matrix(image.shape[axis])
        if axis == image.ndim - 1:
            image = image @ lines.T
        else:
            image = (lines @ image.flatten(axis + 1)).view(image.shape)
    return image


class BlurredMSELoss(nn.Module):
    """Mean squared difference of two images, each blurred by :func:`gaussian_blur` (BlurredSSD of ICON).

    Args:
        sigma: standard deviation in voxels.
    """

    def __init__(self, sigma: int) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare images (B, C, *spatial), 2D or 3D; returns a scalar."""
        dtype = computing_dtype(pred, target)
        # Blurring is linear.
        return gaussian_blur(pred.to(dtype) - target.to(dtype), self.sigma).square().mean()

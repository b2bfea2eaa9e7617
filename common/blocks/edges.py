# SPDX-License-Identifier: Apache-2.0
"""What images of any contrast have in common: where their intensities change."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.spatial import gaussian_filter

_BLUR, _SURROUNDINGS = 1.0, 4.0
"""Standard deviations in voxels of what is differentiated, and of what an edge is compared with."""
_FAINT = 1e-4
"""Per voxel, of images up to 1: changes below it count as none."""


def edges(image: Tensor) -> Tensor:
    """How steep each image is, compared with its surroundings.

    The length of the gradient of the blurred image, divided by itself and its mean nearby. Intensities that are
    inverted, shifted or scaled leave it as it is, but for very faint images. The idea is that of normalised gradients
    (E. Haber and J. Modersitzki, Methods of Information in Medicine 46, 2007), without their direction.

    Args:
        image: (B, C, *spatial), intensities from 0 to 1; each channel is an image.

    Returns:
        The same shape, float32, 0 to 1: 0 where nothing changes, about a half in noise.
    """
    blurred = gaussian_filter(image.float(), _BLUR, inside=True)
    dims = image.ndim - 2
    squared = torch.zeros_like(blurred)
    for axis in range(dims):
        # Of the last plane there is no next one.
        behind = [0, 0] * (dims - 1 - axis) + [0, 1]
        squared = squared + F.pad(blurred.diff(dim=2 + axis), behind).square()
    # The square root has no slope at 0.
    steep = (squared + _FAINT**2).sqrt() - _FAINT
    return steep / (steep + gaussian_filter(steep, _SURROUNDINGS, inside=True) + _FAINT)

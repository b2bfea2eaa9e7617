# SPDX-License-Identifier: Apache-2.0
"""What of an image is background, by its values; the one rule of figures, working grids and the scaling of images."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_BACKGROUND_SHARE = 0.1
"""Of the voxels; with so many zeros, 0 is the background of an image that has values below 0, too."""


def background(image: Tensor) -> Tensor:
    """The value of an image's background: the smallest, or 0 where a tenth of the voxels or more are exactly 0.

    For a scan without values below 0 that has been cut out, this is 0. A scan that was brought to mean 0 inside a mask,
    or that interpolation made undershoot, keeps its 0; in Hounsfield units and in z-scores of a whole scan it is the
    smallest value.

    Args:
        image: any shape, one image.

    Returns:
        A scalar of its type.
    """
    is_zero = (image == 0).float().mean() >= _BACKGROUND_SHARE
    return torch.where(is_zero, torch.zeros_like(image[(0,) * image.ndim]), image.amin())


def foreground(image: Tensor) -> Tensor:
    """Where an image is not :func:`background`; bool, of the image's shape. Nowhere in an image of one value."""
    return image != background(image)


def mask_or_everywhere(mask: Tensor, of: str) -> Tensor | None:
    """A mask, or None, for everywhere, with a warning where it has no voxel.

    Args:
        mask: bool.
        of: what and of which pair, for the warning.
    """
    if bool(mask.any()):
        return mask
    _LOGGER.warning("There is no foreground in %s: the figures of folding count all voxels.", of)
    return None

# SPDX-License-Identifier: Apache-2.0
"""Images in a scale that losses and networks can work with, whatever their file has."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from common.checks import InputError
from common.spatial.foreground import background

_LOGGER = logging.getLogger(__name__)
_LEAST_RANGE = 0.25
"""Of an image from background to bright. Epsilons of LNCC and instance normalisation are made for images up to 1:
where the contrast is small they take its place, nothing is seen and nothing learnt."""
_LARGEST = 65535.0
"""Of 16 bits. Far beyond, fourth powers of intensities overflow single precision."""
_LARGEST_OUTLIER = 1e8
_BRIGHT = 0.999
_SAMPLED = 1_000_000


def fit_intensity(image: Tensor, name: str) -> Tensor:
    """An image whose background is near 0 and whose bright voxels are 0.25 or more.

    An image that is so comes back as it is: those of the published recipes are. Any other is stretched linearly, its
    background (:func:`common.spatial.foreground.background`) to 0 and its bright value (that of which 99.9 % of the
    voxels lie below, or the largest) to 1; nothing is cut off.

    Args:
        image: (1, *spatial), after the window or scale of the recipe.
        name: of its file, for messages.

    Returns:
        The same shape, float32 where it was stretched.

    Raises:
        InputError: the image has one value alone, or values that are too large for single precision.
    """
    values = image.as_tensor() if isinstance(image, MetaTensor) else image
    low, high = (float(value) for value in values.aminmax())
    dark, bright = float(background(values)), _bright(values)
    bright = bright if bright > dark else high
    if not low < high:
        raise InputError(
            f"The image {name} is constant ({low:g}) after the preprocessing of this bundle, whose range it does not "
            "meet: change preprocessing (for inference intensity), or leave this scan out."
        )
    span = bright - dark
    if 0 <= dark <= span and span >= _LEAST_RANGE and max(-low, high) <= _LARGEST:
        return image
    if max(-low, high) / span > _LARGEST_OUTLIER:
        raise InputError(
            f"The image {name} has values from {low:g} to {high:g}, but 99.9 % lie below {bright:g}: remove what is no "
            "intensity."
        )
    _LOGGER.info(
        "%s has values from %.4g to %.4g: it is stretched, its background %.4g to 0 and %.4g to 1.",
        *(name, low, high, dark, bright),
    )
    # In double precision where a small contrast stands on a large value.
    return ((image.double() - dark) / span).float()


def _bright(values: Tensor) -> float:
    flat = values.flatten()
    # About a million voxels tell it as well.
    flat = flat[:: 1 + flat.numel() // _SAMPLED]
    return float(flat.kthvalue(max(1, round(_BRIGHT * flat.numel()))).values)


class FitIntensityd(MapTransform):
    """:func:`fit_intensity` of a subject's image, where it has one."""

    def __init__(self) -> None:
        super().__init__("image", allow_missing_keys=True)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with its image in scale."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            image = subject[key]
            if isinstance(image, torch.Tensor):
                name = image.meta.get("filename_or_obj", "?") if isinstance(image, MetaTensor) else data.get("id", "?")
                subject[key] = fit_intensity(image, str(name))
        return subject

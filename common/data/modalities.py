# SPDX-License-Identifier: Apache-2.0
"""Intensities from 0 to 1 as the published weights of GradICON and uniGradICON expect them, by kind of image.

Repositories: uncbiag/ICON, uncbiag/uniGradICON (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from torch import Tensor

from common.checks import InputError

WINDOWS = {"ct": (-1000.0, 1000.0), "lung_ct": (-1000.0, 0.0)}
"""Hounsfield units that become 0 and 1."""
MODALITIES = (*WINDOWS, "mri", "brain_mri")
_BRIGHT, _BRAIN_MAXIMUM = 0.99, 0.9


def scale_modality(image: Tensor, modality: str, mask: Tensor | None = None) -> Tensor:
    """Bring an image into scale.

    ========= ====================================================================== =====================
    modality  rule                                                                   weights
    ========= ====================================================================== =====================
    ct        -1000 to 1000 Hounsfield units, what lies outside cut off              uniGradICON
    mri       the smallest value to that of rank ``floor(0.99 n)`` of n values       uniGradICON
    lung_ct   -1000 to 0 Hounsfield units                                            GradICON, lungs, masked
    brain_mri multiplied, the largest value to 0.9                                   GradICON, brains
    ========= ====================================================================== =====================

    Args:
        image: any shape.
        modality: one of :data:`MODALITIES`.
        mask: the same shape; the result is multiplied by it, None for no mask.

    Returns:
        Float32.

    Raises:
        InputError: for another modality, or an image that is constant after the rule.
    """
    if modality not in MODALITIES:
        raise InputError(f"The modality is {modality!r}; choose one of {', '.join(MODALITIES)}.")
    values = image.float()
    if modality == "brain_mri":
        low, high = values.new_zeros(()), values.max() / _BRAIN_MAXIMUM
    elif modality == "mri":
        rank = max(1, int(_BRIGHT * values.numel()))
        low, high = values.min(), values.flatten().kthvalue(rank).values
        values = values.clamp(low, high)
    else:
        low, high = (values.new_tensor(bound) for bound in WINDOWS[modality])
        values = values.clamp(low, high)
    if not bool(high > low) or not bool(values.min() < values.max()):
        raise InputError(
            f"The image is constant by the rule for {modality} ({float(low):g} to {float(high):g}): choose the "
            "modality that it is of, or leave it out."
        )
    scaled = (values - low) / (high - low)
    return scaled if mask is None else scaled * mask


class ScaleModalityd(MapTransform):
    """:func:`scale_modality` of entries of a subject.

    Args:
        keys: entries with images.
        modality: of the images.
        mask_key: entry with a mask, in scans that have it: images are 0 where it is 0; None for no mask.
    """

    def __init__(self, keys: KeysCollection = "image", modality: str = "mri", mask_key: str | None = None) -> None:
        super().__init__(keys)
        self.modality, self.mask_key = modality, mask_key

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with its images in scale.

        Raises:
            InputError: as :func:`scale_modality`, naming the file.
        """
        subject = dict(data)
        found = subject.get(self.mask_key)
        mask = None if found is None else torch.as_tensor(found) != 0
        for key in self.key_iterator(subject):
            try:
                subject[key] = scale_modality(subject[key], self.modality, mask)
            except InputError as error:
                file = subject[key].meta.get("filename_or_obj", "?") if isinstance(subject[key], MetaTensor) else key
                raise InputError(f"{file}: {error}") from error
        return subject

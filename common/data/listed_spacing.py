# SPDX-License-Identifier: Apache-2.0
"""Voxel sizes that a data set lists beside its scans, for headers that lost them."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils.enums import MetaKeys

_logger = logging.getLogger(__name__)
_UNIT_TOLERANCE = 1e-4
SPACING = "spacing"
"""Entry of a subject that lists the voxel size, three numbers in one text."""


def spacing_text(spacing: Sequence[float]) -> str:
    """Voxel size in millimetres per array axis as a subject carries it and :class:`ListedSpacingd` reads it."""
    return " ".join(str(float(size)) for size in spacing)


class ListedSpacingd(MapTransform):
    """Put the voxel size that a subject lists under "spacing" into the affines of its image and label map.

    Copies of public data sets exist whose headers say 1 x 1 x 1 mm for every scan. Directions and origin stay those of
    the header. A subject without the entry keeps its header; where that says 1 x 1 x 1 mm, a warning asks to check it.

    Args:
        keys: entries loaded by :class:`common.data.LoadSubjectd`.
        allow_missing_keys: whether a subject may lack some of the keys.
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with corrected affines."""
        subject = dict(data)
        listed = subject.get(SPACING)
        for position, key in enumerate(self.key_iterator(subject)):
            image = subject[key]
            if not isinstance(image, MetaTensor):
                continue
            if listed is not None:
                subject[key] = _with_spacing(image, [float(size) for size in str(listed).split()])
            elif position == 0 and bool(((image.pixdim - 1).abs() < _UNIT_TOLERANCE).all()):
                _logger.warning(
                    "The header of %s says 1 x 1 x 1 mm, as headers do that lost their voxel size; check it, and list "
                    "the right one beside the patient (README, Data).",
                    image.meta.get("filename_or_obj", "an image"),
                )
        return subject


def _with_spacing(image: MetaTensor, spacing: Sequence[float]) -> MetaTensor:
    affine = image.affine.clone()
    factors = torch.as_tensor(spacing, dtype=affine.dtype) / image.pixdim.to(affine.dtype)
    affine[: len(factors), : len(factors)] *= factors
    rest = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(image.as_tensor(), affine=affine, meta=rest)

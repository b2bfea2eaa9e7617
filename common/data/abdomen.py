# SPDX-License-Identifier: Apache-2.0
"""Abdominal CT as EOIR prepares it (Learn2Reg 2020 task 3, 192 x 160 x 256 at 2 mm to half of that)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils.enums import MetaKeys
from scipy import ndimage

from common.checks import InputError
from common.data.transforms import is_label

HU_WINDOW = (-500.0, 800.0)
_BODY_HU = -300.0
"""Between air and fat."""


def prepare_abdomen(
    hu: np.ndarray, labels: np.ndarray | None = None, zoom: float = 0.5
) -> tuple[np.ndarray, np.ndarray | None]:
    """Window a CT to [0, 1] and zoom it, as published to half its grid.

    Args:
        hu: Hounsfield units (X, Y, Z).
        labels: label map (X, Y, Z) or None.
        zoom: voxels of the result per voxel of the scan, along each axis; 1 keeps the grid.

    Returns:
        Image float32, zoomed with quadratic splines and not clipped again, so that values slightly outside [0, 1]
        remain; labels on the same grid by nearest neighbour, in their own dtype.

    Raises:
        InputError: ``zoom`` is not above 0 and at most 1.
    """
    _check_zoom(zoom)
    return _zoomed_image(hu, zoom), None if labels is None else _zoomed_labels(labels, zoom)


def _check_zoom(zoom: float) -> None:
    if not 0 < zoom <= 1:
        raise InputError(f"The zoom is {zoom}; give a number above 0 and at most 1, e.g. 0.5 for half the grid.")


def _zoomed_image(hu: np.ndarray, zoom: float) -> np.ndarray:
    low, high = HU_WINDOW
    image = (np.clip(np.asarray(hu, np.float32), low, high) - low) / (high - low)
    return ndimage.zoom(image, zoom, order=2).astype(np.float32)


def _zoomed_labels(labels: np.ndarray, zoom: float) -> np.ndarray:
    return ndimage.zoom(np.asarray(labels), zoom, order=0)


class PrepareAbdomend(MapTransform):
    """:func:`prepare_abdomen` for a subject: its image windowed and zoomed, its label map zoomed, affines with them.

    The first and last voxel of each axis stay where they are in the world, as they do in the zoom.

    Args:
        keys: entries loaded by :class:`common.data.LoadSubjectd`; keys that are "label" or end in "_label" are labels.
        zoom: voxels of the result per voxel of the scan, along each axis; 1 keeps the grid.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: ``zoom`` is not above 0 and at most 1.
    """

    def __init__(
        self, keys: KeysCollection = ("image", "label"), zoom: float = 0.5, allow_missing_keys: bool = True
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        _check_zoom(zoom)
        self.zoom = zoom

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject on the zoomed grid, (1, *zoomed) float32 image and labels in their dtype."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            prepare = _zoomed_labels if is_label(key) else _zoomed_image
            image = subject[key]
            zoomed = torch.from_numpy(prepare(torch.as_tensor(image)[0].numpy(), self.zoom))[None]
            subject[key] = _with_grid_of(image, zoomed) if isinstance(image, MetaTensor) else zoomed
        return subject


def _with_grid_of(image: MetaTensor, zoomed: torch.Tensor) -> MetaTensor:
    affine = image.affine.clone()
    affine[:, : zoomed.ndim - 1] *= torch.as_tensor(_steps(image.shape[1:], zoomed.shape[1:]), dtype=affine.dtype)
    rest = {name: value for name, value in image.meta.items() if name != MetaKeys.AFFINE}
    return MetaTensor(zoomed, affine=affine, meta=rest)


def _steps(size: Sequence[int], zoomed: Sequence[int]) -> list[float]:
    """Voxels of the whole grid from one voxel of the zoomed grid to the next."""
    return [(n - 1) / (m - 1) if m > 1 else 1.0 for n, m in zip(size, zoomed, strict=True)]


def body_mask(hu: np.ndarray) -> np.ndarray:
    """The patient in a CT, without table and surrounding air.

    Args:
        hu: Hounsfield units (X, Y, Z), slices along the last axis.

    Returns:
        (X, Y, Z) bool: the largest connected part above -300 HU, with what it encloses in each slice, such as lungs and
        gas in the bowel. All False where nothing is above.
    """
    parts, count = ndimage.label(np.asarray(hu) > _BODY_HU)
    if count == 0:
        return np.zeros(parts.shape, bool)
    largest = parts == 1 + np.argmax(np.bincount(parts.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(largest, -1, 0)], axis=-1)

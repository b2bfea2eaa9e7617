# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms for one subject: load, check."""

from __future__ import annotations

import functools
import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform

from common.checks import InputError
from common.data.counted_labels import PRESENT, listed, presence
from common.data.pickles import load_arrays
from common.io.images import Image
from common.io.label_values import labels_of
from common.io.nifti import read_image, read_labels
from common.spatial.finite import all_finite
from common.spatial.places import GRID_TOLERANCE, arrays_apart

_logger = logging.getLogger(__name__)


def is_label(key: Hashable) -> bool:
    """Whether an entry is a label map or a mask: its key is "label" or "mask", or ends in "_label" or "_mask"."""
    return str(key).rpartition("_")[-1] in ("label", "mask")


def _is_mask(key: Hashable) -> bool:
    return str(key).rpartition("_")[-1] == "mask"


def _file(image: torch.Tensor) -> str:
    return str(image.meta.get("filename_or_obj", "?")) if isinstance(image, MetaTensor) else "?"


class LoadSubjectd(MapTransform):
    """Load images and label maps as ``MetaTensor`` (1, *spatial), 2D or 3D, with the affine of the file.

    NIfTI (``.nii``, ``.nii.gz``) is read by :func:`common.io.nifti.read_image` and its likes; a pickle (``.pkl``) by
    :func:`common.data.load_arrays`, with the identity as affine. A pickle holds (image, label), or (moving, fixed,
    moving label, fixed label), of which ``data["role"]``, "moving" or "fixed", chooses one half. An entry may be an
    image in memory (:class:`common.io.images.Image`) in place of its path.

    Args:
        keys: entries that hold paths. Keys that are "label" or end in "_label" become label maps (the first of uint8,
            int16, int32 and int64 that holds all values), and so do those of "mask"; the others float32 images.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: file missing, damaged, of another kind, not 2D or 3D, or labels that are no integers.
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Replace the paths under ``keys`` by tensors; the other entries stay."""
        subject = dict(data)
        pickles: dict[str, tuple[np.ndarray, ...]] = {}
        for key in self.key_iterator(subject):
            source = subject[key] if isinstance(subject[key], Image) else str(subject[key])
            path = str(source)
            if isinstance(source, str) and path.endswith(".pkl"):
                if path not in pickles:
                    pickles[path] = load_arrays(path)
                image, affine = _from_pickle(path, pickles[path], is_label(key), subject.get("role")), torch.eye(4)
            else:
                image, affine = (read_labels if is_label(key) else read_image)(source)
            subject[key] = MetaTensor(image[None], affine=affine, meta={"filename_or_obj": source})
        return subject


def _from_pickle(path: str, arrays: tuple[np.ndarray, ...], label: bool, role: str | None) -> torch.Tensor:
    if role is None and len(arrays) <= 2:
        position = int(label)
    elif role is not None and len(arrays) == 4:
        position = 2 * int(label) + int(role == "fixed")
    else:
        raise InputError(
            f"The pickle {path} holds {len(arrays)} arrays; expected (image, label) in p_NNNN.pkl or (moving, fixed, "
            "moving label, fixed label) in p_AAAA_BBBB.pkl."
        )
    if position >= len(arrays):
        raise InputError(f"The pickle {path} holds no label map, but a label is listed for it; remove the label entry.")
    array = _single(arrays[position], path)
    return labels_of(array, path) if label else torch.from_numpy(array.astype(np.float32))


def _single(array: np.ndarray, path: str) -> np.ndarray:
    """Without axes of length one, of which some pickles have a first or a last."""
    if array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3):
        raise InputError(
            f"{path} has shape {array.shape}, but one image of two or three dimensions is expected; split a series "
            "into single images first."
        )
    return array


class CheckSubjectd(MapTransform):
    """Refuse subjects that a network would silently fail on, and warn of label maps that say nothing.

    Such a label map has one value everywhere, or none of the labels that count. With ``counted`` the subject gets the
    entry :data:`common.data.counted_labels.PRESENT`, by which a data set sees whether any of its maps has them.

    Args:
        keys: image entries (1, *spatial) and, last, optional entries of labels and masks, as in :class:`LoadSubjectd`.
        labels: all values that a label map may have; None for any. Background 0 is always allowed.
        counted: the labels that count, None where that is not known.
        spatial_dims: allowed numbers of spatial dimensions.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: NaN or infinite or constant image, unknown label value, mask without a voxel, label map or mask on
            another grid than the first image, or other numbers of dimensions.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: Sequence[int] | None = None,
        spatial_dims: int | Sequence[int] = (2, 3),
        allow_missing_keys: bool = True,
        counted: Sequence[int] | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = None if labels is None else {0, *labels}
        self.counted = counted
        self.spatial_dims = (spatial_dims,) if isinstance(spatial_dims, int) else tuple(spatial_dims)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject, its tensors unchanged, if it passes."""
        subject = dict(data)
        reference: torch.Tensor | None = None
        for key in self.key_iterator(subject):
            image = subject[key]
            self._check_dimensions(image)
            if is_label(key):
                subject |= _check_mask(image) if _is_mask(key) else self._check_labels(image)
                if reference is not None:
                    _check_label_grid(reference, image, "mask" if _is_mask(key) else "label map")
            else:
                _check_intensities(image)
                reference = image if reference is None else reference
        return subject

    def _check_dimensions(self, image: torch.Tensor) -> None:
        if image.ndim - 1 not in self.spatial_dims:
            allowed = " or ".join(str(d) for d in self.spatial_dims)
            raise InputError(
                f"{_file(image)} has {image.ndim - 1} spatial dimensions, but {allowed} are expected; where a bundle "
                "has them, network_def#spatial_dims, spatial_size and spacing say for how many it is."
            )

    def _check_labels(self, image: torch.Tensor) -> dict[str, Any]:
        """What is known of the labels of a label map from now on."""
        label = torch.as_tensor(image)
        low, high = (int(bound) for bound in torch.aminmax(label))
        if low == high:
            what = "background (0) everywhere" if low == 0 else f"the label {low} in every voxel, without background"
            _warn_once(f"The label map {_file(image)} is {what}.")
        if self.labels is None and self.counted is None:
            return {}
        values = torch.unique(label).tolist()
        if self.labels is not None and not self.labels.issuperset(values):
            raise InputError(
                f"The label map {_file(image)} has the value {min(set(values) - self.labels)}, which is not among the "
                f"{len(self.labels)} known labels; check that it belongs to this data set, or name with --labels the "
                "labels that count."
            )
        if self.counted is None:
            return {}
        present = presence(values, self.counted)
        there = [value for value in values if value != 0]
        if there and not any(present[value] for value in there if value in present):
            _warn_once(
                f"The label map {_file(image)} has none of the labels that count ({listed(list(self.counted))}), but "
                f"{listed(there)}."
            )
        return {PRESENT: present}


@functools.cache
def _warn_once(sentence: str) -> None:
    """A scan that is not kept in memory is checked each time that it is read."""
    _logger.warning(sentence)


def _check_intensities(image: torch.Tensor) -> None:
    if not all_finite(torch.as_tensor(image)):
        raise InputError(f"The image {_file(image)} has NaN or infinite values; replace them or leave it out.")
    if bool(image.min() == image.max()):
        raise InputError(f"The image {_file(image)} is constant, there is nothing to register; leave this subject out.")


def _check_mask(mask: torch.Tensor) -> dict[str, Any]:
    """Nothing more is known of a mask that has a voxel."""
    if not bool((mask != 0).any()):
        raise InputError(f"The mask {_file(mask)} is 0 everywhere: nothing of its image would count; leave it out.")
    return {}


def _check_label_grid(image: torch.Tensor, label: torch.Tensor, kind: str) -> None:
    if image.shape[1:] != label.shape[1:]:
        raise InputError(
            f"The {kind} {_file(label)} has shape {tuple(label.shape[1:])}, but its image {_file(image)} has "
            f"{tuple(image.shape[1:])}; both must lie on one grid."
        )
    if isinstance(image, MetaTensor) and isinstance(label, MetaTensor):
        apart = arrays_apart(image.shape[1:], *(to_affine_nd(3, item.affine.double()) for item in (image, label)))
        if apart > GRID_TOLERANCE:
            raise InputError(
                f"By their headers the voxels of the {kind} {_file(label)} and its image {_file(image)} lie up to "
                f"{apart:.3g} voxels apart; both must lie on one grid."
            )

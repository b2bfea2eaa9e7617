# SPDX-License-Identifier: Apache-2.0
"""Dictionary transforms for one subject: load, check, group labels."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.checks import InputError
from common.data.pickles import load_arrays
from common.io.nifti import labels_of, read_image, read_labels

_AFFINE_TOLERANCE = 1e-3


def _is_label(key: Hashable) -> bool:
    return str(key).rpartition("_")[-1] == "label"


def _file(image: torch.Tensor) -> str:
    return str(image.meta.get("filename_or_obj", "?")) if isinstance(image, MetaTensor) else "?"


class LoadSubjectd(MapTransform):
    """Load images and label maps as ``MetaTensor`` (1, *spatial), 2D or 3D, with the affine of the file.

    NIfTI (``.nii``, ``.nii.gz``) is read by :func:`common.io.nifti.read_image` and its likes; a pickle (``.pkl``) by
    :func:`common.data.load_arrays`, with the identity as affine. A pickle holds (image, label), or (moving, fixed,
    moving label, fixed label), of which ``data["role"]``, "moving" or "fixed", chooses one half.

    Args:
        keys: entries that hold paths. Keys that are "label" or end in "_label" become label maps (uint8 where 255 is
            enough, else int16), the others float32 images.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: file missing, damaged, of another kind or unit, not 2D or 3D, or labels that are no integers in
            0..32767.
    """

    def __init__(self, keys: KeysCollection = ("image", "label"), allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Replace the paths under ``keys`` by tensors; the other entries stay."""
        subject = dict(data)
        pickles: dict[str, tuple[np.ndarray, ...]] = {}
        for key in self.key_iterator(subject):
            path = str(subject[key])
            if path.endswith(".pkl"):
                if path not in pickles:
                    pickles[path] = load_arrays(path)
                image, affine = _from_pickle(path, pickles[path], _is_label(key), subject.get("role")), torch.eye(4)
            else:
                image, affine = (read_labels if _is_label(key) else read_image)(path)
            subject[key] = MetaTensor(image[None], affine=affine, meta={"filename_or_obj": path})
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
    """Refuse subjects that a network would silently fail on.

    Args:
        keys: image entries (1, *spatial) and, last, optional label entries, as in :class:`LoadSubjectd`.
        labels: all values that a label map may have; None for any. Background 0 is always allowed.
        spatial_dims: allowed numbers of spatial dimensions.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: NaN or infinite or constant image, unknown label value, label map on another grid than the first
            image, or other numbers of dimensions.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: Sequence[int] | None = None,
        spatial_dims: int | Sequence[int] = (2, 3),
        allow_missing_keys: bool = True,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = None if labels is None else {0, *labels}
        self.spatial_dims = (spatial_dims,) if isinstance(spatial_dims, int) else tuple(spatial_dims)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject unchanged if it passes."""
        subject = dict(data)
        reference: torch.Tensor | None = None
        for key in self.key_iterator(subject):
            image = subject[key]
            self._check_dimensions(image)
            if _is_label(key):
                self._check_labels(image)
                if reference is not None:
                    _check_label_grid(reference, image)
            else:
                _check_intensities(image)
                reference = image if reference is None else reference
        return subject

    def _check_dimensions(self, image: torch.Tensor) -> None:
        if image.ndim - 1 not in self.spatial_dims:
            allowed = " or ".join(str(d) for d in self.spatial_dims)
            raise InputError(f"{_file(image)} has {image.ndim - 1} spatial dimensions, but {allowed} are expected.")

    def _check_labels(self, image: torch.Tensor) -> None:
        if self.labels is None:
            return
        unknown = sorted(set(torch.unique(torch.as_tensor(image)).tolist()) - self.labels)
        if unknown:
            raise InputError(
                f"The label map {_file(image)} has the value {unknown[0]}, which is not among the {len(self.labels)} "
                "known labels; check that it belongs to this data set."
            )


def _check_intensities(image: torch.Tensor) -> None:
    if not bool(torch.isfinite(image).all()):
        raise InputError(f"The image {_file(image)} has NaN or infinite values; replace them or leave it out.")
    if bool(image.min() == image.max()):
        raise InputError(f"The image {_file(image)} is constant, there is nothing to register; leave this subject out.")


def _check_label_grid(image: torch.Tensor, label: torch.Tensor) -> None:
    if image.shape[1:] != label.shape[1:]:
        raise InputError(
            f"The label map {_file(label)} has shape {tuple(label.shape[1:])}, but its image {_file(image)} has "
            f"{tuple(image.shape[1:])}; both must lie on one grid."
        )
    if isinstance(image, MetaTensor) and isinstance(label, MetaTensor):
        difference = float((image.affine - label.affine).abs().max())
        if not difference <= _AFFINE_TOLERANCE:
            raise InputError(
                f"The affines of the label map {_file(label)} and its image {_file(image)} differ by up to "
                f"{difference:.4g}; both must lie on one grid."
            )

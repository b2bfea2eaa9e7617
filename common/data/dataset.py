# SPDX-License-Identifier: Apache-2.0
"""Pairs out of subjects that are decoded once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import CacheDataset, MetaTensor
from monai.data.utils import to_affine_nd
from torch.utils.data import Dataset

from common.checks import InputError

_logger = logging.getLogger(__name__)
_AFFINE_TOLERANCE = 1e-3


class PairDataset(Dataset):
    """N subjects, kept decoded in memory, seen as pairs; index with ``(moving, fixed)`` or ``(moving, fixed, flips)``.

    Made for a data loader with :class:`common.data.PairSampler`. Labels are handed out only if every subject has one,
    so that all items have the same keys and can be collated. The tensors of an item share memory with the cache:
    collate or copy before writing into them.

    Args:
        data: subjects {"id", "image", "label" (optional)} as :func:`common.data.read_subjects` gives them.
        transform: what makes tensors of a subject, a ``monai.transforms.Compose`` that starts with
            :class:`common.data.LoadSubjectd`; everything up to the first random transform is done once per subject.
        cache_rate: share of the subjects that is kept in memory, 0 to 1; the others are decoded on each access.
        num_workers: threads that fill the cache.
        progress: whether a progress bar is shown while the cache is filled.

    Attributes:
        data: the list of subjects.
        labels_of_all: whether a pair has labels only where all subjects have them.

    Raises:
        InputError: no subject, a subject that cannot be read or used, and (on access) two subjects on different grids.
    """

    labels_of_all = True

    def __init__(
        self,
        data: Sequence[dict[str, Any]],
        transform: Callable[..., Any],
        cache_rate: float = 1.0,
        num_workers: int = 2,
        progress: bool = True,
    ) -> None:
        if len(data) == 0:
            raise InputError("The list of subjects is empty; check the data folder and the section that was read.")
        self.data = list(data)
        with_label = sum("label" in subject for subject in self.data)
        self.labelled = with_label == len(self.data)
        if self.labels_of_all and 0 < with_label < len(self.data):
            _logger.warning("Only %d of %d subjects have labels; labels are left out.", with_label, len(self.data))
        with _sentence_for_the_user():
            self.subjects = CacheDataset(
                self.data, transform, cache_rate=cache_rate, num_workers=num_workers, progress=progress
            )

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: tuple[Any, ...]) -> dict[str, Any]:
        """One pair.

        Args:
            index: (moving, fixed), indices of subjects; a third entry, a tuple of spatial axes, mirrors the whole pair,
                labels and affine included, along these.

        Returns:
            Dictionary of "moving" and "fixed" (C, *spatial) float32; "moving_label" and "fixed_label" (1, *spatial)
            int16 if the data set is labelled; "affine" (4, 4) float64, voxels of the fixed image to world millimetres;
            and the strings "moving_id", "fixed_id", "path_moving", "path_fixed". Plain tensors, no MetaTensor.
        """
        moving_index, fixed_index, *flipped = index
        moving, fixed = self._subject(moving_index), self._subject(fixed_index)
        path_moving, path_fixed = self.data[moving_index]["image"], self.data[fixed_index]["image"]
        affine = plain_affine(fixed["image"])
        _check_same_grid(moving["image"], fixed["image"], path_moving, path_fixed)
        item: dict[str, Any] = {
            "moving": plain_tensor(moving["image"]).float(),
            "fixed": plain_tensor(fixed["image"]).float(),
        }
        if self.labelled:
            # One dtype for all subjects: the compact dtype of the cache may differ between them, and a batch may not.
            item["moving_label"] = plain_tensor(moving["label"]).to(torch.int16)
            item["fixed_label"] = plain_tensor(fixed["label"]).to(torch.int16)
        if flipped and flipped[0]:
            affine = affine @ _mirror(flipped[0], item["fixed"].shape[1:])
            item = {name: image.flip([1 + axis for axis in flipped[0]]) for name, image in item.items()}
        item["affine"] = affine
        item["moving_id"], item["fixed_id"] = self.data[moving_index]["id"], self.data[fixed_index]["id"]
        item["path_moving"], item["path_fixed"] = str(path_moving), str(path_fixed)
        return item

    def _subject(self, index: int) -> dict[str, Any]:
        with _sentence_for_the_user():
            return self.subjects[index]


@contextmanager
def _sentence_for_the_user() -> Iterator[None]:
    """MONAI wraps what a transform raises into RuntimeErrors; an InputError at the end of the chain comes out again."""
    try:
        yield
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__
        if cause is None:
            raise
        raise InputError(str(cause)) from error


def plain_tensor(image: torch.Tensor) -> torch.Tensor:
    """A tensor without MONAI's metadata."""
    return image.as_tensor() if isinstance(image, MetaTensor) else torch.as_tensor(image)


def plain_affine(image: torch.Tensor) -> torch.Tensor:
    """(4, 4) float64, voxels to millimetres RAS+; the identity where the image has none."""
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    return torch.as_tensor(to_affine_nd(3, affine.to(torch.float64)), dtype=torch.float64)


def _mirror(axes: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """(4, 4), indices after flipping ``axes`` to indices before."""
    mirror = torch.eye(4, dtype=torch.float64)
    for axis in axes:
        mirror[axis, axis], mirror[axis, 3] = -1, size[axis] - 1
    return mirror


def _check_same_grid(moving: torch.Tensor, fixed: torch.Tensor, path_moving: str, path_fixed: str) -> None:
    if moving.shape != fixed.shape:
        raise InputError(
            f"The moving image {path_moving} has shape {tuple(moving.shape)} and the fixed image {path_fixed} has "
            f"shape {tuple(fixed.shape)} (channel first), but a pair must lie on one grid; resample them first."
        )
    difference = (plain_affine(moving) - plain_affine(fixed)).abs().max().item()
    if not difference <= _AFFINE_TOLERANCE:
        raise InputError(
            f"The affines of the moving image {path_moving} and the fixed image {path_fixed} differ by up to "
            f"{difference:.4g}, but a pair must lie on one grid; resample them first."
        )

# SPDX-License-Identifier: Apache-2.0
"""Pairs out of subjects that are decoded once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import Compose, MapTransform
from torch.utils.data import Dataset

from common.checks import InputError
from common.data.cache import SubjectCache
from common.data.counted_labels import PRESENT, check_presence
from common.data.intensity import FitIntensityd
from common.data.landmarks import check_correspondence
from common.data.outlines import Outlines
from common.data.pairs import DrawnPair
from common.data.readers.listing import LANDMARKS
from common.spatial.places import GRID_TOLERANCE, arrays_apart

_logger = logging.getLogger(__name__)


class PairDataset(Dataset):
    """N subjects, kept decoded in memory, seen as pairs; index with :class:`common.data.pairs.DrawnPair`.

    Made for a data loader with :class:`common.data.PairSampler`. Masks and the like are handed out only if every
    subject has one, so that all items have the same keys and can be collated; landmarks, whose numbers differ and which
    are for batches of one pair, wherever both subjects have them. Where some subjects have label maps and some have
    none, all items have labels, of zeros where there are none, and "labelled" says whether both are real:
    :class:`common.engine.PrepareRegistrationBatch` goes by it. The tensors of an item share memory with the cache:
    collate or copy before writing into them.

    Args:
        data: subjects {"id", "image", "label" (optional), ...} as :func:`common.data.read_section` gives them; where
            images are made of label maps later, "image" may be absent.
        transform: what makes tensors of a subject, a ``monai.transforms.Compose`` that starts with
            :class:`common.data.LoadSubjectd`; everything up to the first random transform is done once per subject. Its
            images are then brought to scale, see :func:`common.data.intensity.fit_intensity`.
        cache_rate: share of the subjects that is kept in memory, 0 to 1; the others are decoded on each access.
        num_workers: threads that fill the cache.
        progress: whether a progress bar is shown while the cache is filled.

    Attributes:
        data: the list of subjects.
        partial: keys that some subjects lack.
        labelled: for each subject whether it has a label map; empty where one of a pair is of use by itself.
        outlines: grids of the subjects, see :class:`common.data.outlines.Outlines`.

    Raises:
        InputError: no subject, a subject that cannot be read or used, label maps of which none has a label that counts,
            and (by the sampler or on access) two subjects on different grids.
    """

    scale: MapTransform = FitIntensityd()
    """Last step of the transform."""

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
        keys = dict.fromkeys(key for subject in self.data for key in subject)
        self.partial = {key for key in keys if not all(key in subject for subject in self.data)}
        self.labelled = ["label" in subject for subject in self.data]
        with _sentence_for_the_user():
            # What MONAI finds nested it takes for random, and would not keep.
            steps = Compose([transform, self.scale]).flatten()
            self.subjects = SubjectCache(
                self.data, steps, cache_rate=cache_rate, num_workers=num_workers, progress=progress
            )
        self.outlines = Outlines(self.data, self.subjects)
        if self.subjects.cache_num == len(self.data):
            self._check_labels()

    def _check_labels(self) -> None:
        """Before anything is computed: whether the labels that count are there at all."""
        present = [subject[PRESENT] for subject in map(self._subject, range(len(self))) if PRESENT in subject]
        sentence = check_presence(present) if present else None
        if sentence is not None:
            _logger.warning(sentence)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: tuple[Any, ...]) -> dict[str, Any]:
        """One pair.

        Args:
            index: a :class:`common.data.pairs.DrawnPair`, or the first of its entries, (moving, fixed).

        Returns:
            Dictionary of "moving" and "fixed" (C, *spatial) float32, if the subjects have images; "moving_label" and
            "fixed_label" (1, *spatial) int32, and so on for every further tensor of the subjects ("moving_mask",
            float32 of 0 and 1, "moving_landmarks" (N, d) in voxels, ...), if all subjects have it; "labelled" () bool,
            if only some have labels; "affine" (4, 4) float64, voxels of the fixed image to world millimetres; "draw"
            (3,) int64, seed, epoch and index of the item; and the strings "moving_id", "fixed_id", "path_moving",
            "path_fixed". Plain tensors, no MetaTensor. Flips mirror all of it.
        """
        drawn = DrawnPair(*index)
        places = {"moving": drawn.moving, "fixed": drawn.fixed}
        subjects = {side: self._subject(place) for side, place in places.items()}
        shown = "image" if isinstance(subjects["fixed"].get("image"), torch.Tensor) else "label"
        paths = {side: str(self.data[place][shown]) for side, place in places.items()}
        moving, fixed = (subjects[side][shown] for side in places)
        _check_same_grid(moving, fixed, paths["moving"], paths["fixed"])
        size = fixed.shape[1:]
        if "label" in self.partial:
            labelled = all("label" in subject for subject in subjects.values())
            none = torch.zeros((1, *size), dtype=torch.uint8)
            subjects = {side: {"label": none, **subject} for side, subject in subjects.items()}
        # A recipe for volumes mirrors images along the axes that these have.
        flips = [axis for axis in drawn.flips if axis < len(size)]
        item: dict[str, Any] = {}
        for key, value in subjects["fixed"].items():
            if isinstance(value, torch.Tensor) and self._is_given(key, subjects["moving"]):
                for side, subject in subjects.items():
                    name = side if key == "image" else f"{side}_{key}"
                    item[name] = _mirrored(_collatable(key, subject[key]), flips, size)
        if f"moving_{LANDMARKS}" in item:
            files = [str(self.data[place][LANDMARKS]) for place in places.values()]
            check_correspondence(item[f"moving_{LANDMARKS}"], item[f"fixed_{LANDMARKS}"], *files)
        if "label" in self.partial:
            item["labelled"] = torch.tensor(labelled)
        item["affine"] = plain_affine(fixed) @ _mirror(flips, size)
        item["draw"] = torch.tensor(drawn.draw)
        for side, place in places.items():
            item[f"{side}_id"], item[f"path_{side}"] = self.data[place]["id"], paths[side]
        return item

    def _is_given(self, key: str, moving: dict[str, Any]) -> bool:
        """Whether an entry of the fixed subject becomes one of the pair."""
        return key not in self.partial or key == "label" or (key == LANDMARKS and key in moving)

    def check_pairs(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Refuse pairs that cannot be made, before any work is begun on others.

        Args:
            pairs: (moving, fixed), indices of subjects.

        Raises:
            InputError: two subjects on different grids, as on access; or one that cannot be read or used.
        """
        with _sentence_for_the_user():
            for moving, fixed in pairs:
                self._check_pair(*((self.outlines[place], self._path(place)) for place in (moving, fixed)))

    def _check_pair(self, moving: tuple[MetaTensor | None, str], fixed: tuple[MetaTensor | None, str]) -> None:
        if moving[0] is not None and fixed[0] is not None:
            _check_same_grid(moving[0], fixed[0], moving[1], fixed[1])

    def _path(self, index: int) -> str:
        return str(self.data[index].get("image", self.data[index].get("label")))

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


def _collatable(key: str, value: torch.Tensor) -> torch.Tensor:
    """One type for all subjects: the compact one of the cache may differ between them, and in a batch it may not."""
    value = plain_tensor(value)
    if key.endswith("mask"):
        return (value != 0).float()
    if key.endswith("label"):
        return value if value.dtype == torch.int64 else value.to(torch.int32)
    return value.float() if value.is_floating_point() else value


def _mirrored(value: torch.Tensor, axes: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """An image (C, *spatial), or points (N, d) in voxels, with ``axes`` flipped."""
    if not axes:
        return value
    if value.ndim > 2:
        return value.flip([1 + axis for axis in axes])
    value = value.clone()
    for axis in axes:
        value[:, axis] = size[axis] - 1 - value[:, axis]
    return value


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
    apart = arrays_apart(fixed.shape[1:], plain_affine(moving), plain_affine(fixed))
    if apart > GRID_TOLERANCE:
        raise InputError(
            f"By their headers the voxels of the moving image {path_moving} and the fixed image {path_fixed} lie up to "
            f"{apart:.3g} voxels apart, but a pair must lie on one grid; resample them first."
        )

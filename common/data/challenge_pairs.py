# SPDX-License-Identifier: Apache-2.0
"""What a challenge asks for: the pairs of its own list, and images that are really images on its grid."""

from __future__ import annotations

import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

from common.checks import InputError
from common.data.dataset import plain_tensor
from common.data.readers import READERS
from common.data.request import Request

_logger = logging.getLogger(__name__)
_SECTIONS = ("validation", "test")
_NOT_IMAGES = re.compile(r"(sanitycheck)?(labels|masks|landmarks)", re.IGNORECASE)
# Neighbouring voxels of equal value, measured: 0.05 to 0.11 in brain MR of 256 grey levels, 0.39 in Gaussian noise
# smoothed by 24 voxels, 0.82 (2 mm) to 0.91 (1 mm) in label maps of 139 structures.
_EQUAL_NEIGHBOURS = 0.6
_FEWEST_VALUES = 40


def challenge_request(
    dataset_dir: str | Path, reader: str, section: str | None = None, dataset_json: str | None = None
) -> Request:
    """Images and pairs that a challenge lists, without label maps.

    Args:
        dataset_dir: folder that the paths of the list are relative to.
        reader: layout of the data set.
        section: section of the list; None for the first of validation and test that lists pairs.
        dataset_json: the list, a name inside ``dataset_dir`` or an absolute path; None for the reader's own choice.

    Raises:
        InputError: no such folder or reader, no section lists pairs, or an image is missing; as the reader.
    """
    folder = Path(dataset_dir)
    if reader not in READERS:
        raise InputError(f"The reader '{reader}' is unknown; use one of {', '.join(READERS)}.")
    if not folder.is_dir():
        raise InputError(f"The data folder {folder} does not exist; set dataset_dir to an existing folder.")
    listings = READERS[reader](folder, dataset_json)
    wanted = _SECTIONS if section is None else (section,)
    listing = next((listings[name] for name in wanted if name in listings and listings[name].pairs), None)
    if listing is None or listing.pairs is None:
        raise InputError(
            f"The list {dataset_json or folder} has no pairs {{'fixed', 'moving'}} under {' or '.join(wanted)}; a "
            "submission needs the challenge's own list."
        )
    subjects = [{key: value for key, value in subject.items() if key != "label"} for subject in listing.subjects]
    missing = sorted({subject["image"] for subject in subjects if not Path(subject["image"]).is_file()})
    if missing:
        raise InputError(
            f"{len(missing)} image(s) of the listed pairs do not exist, the first is {missing[0]}; complete the "
            "download or correct the data list."
        )
    return Request(subjects, listing.pairs)


class CheckChallengeImaged(MapTransform):
    """Refuse what is no image of the challenge: another shape, or a label map in place of an image.

    Args:
        keys: image entries (1, *spatial) with MONAI's metadata.
        shape: spatial shape of the challenge's images, or several of them, the release's first.
        allow_missing_keys: whether a subject may lack some of the keys.

    Raises:
        InputError: naming the file.
    """

    def __init__(
        self,
        keys: KeysCollection,
        shape: Sequence[int] | Sequence[Sequence[int]],
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        several: Any = shape if isinstance(shape[0], Sequence) else [shape]
        self.shapes = [tuple(int(n) for n in one) for one in several]

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject unchanged if it passes."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            path = str(subject[key].meta.get("filename_or_obj", "?"))
            self._check_shape(path, tuple(subject[key].shape[1:]))
            if _NOT_IMAGES.match(Path(path).parent.name) or _looks_like_labels(plain_tensor(subject[key])):
                raise InputError(
                    f"{path} is a label map by its folder or its values, but an image is expected; correct the data "
                    "list, or put the image there."
                )
        return subject

    def _check_shape(self, path: str, shape: tuple[int, ...]) -> None:
        if shape not in self.shapes:
            expected = " or ".join("x".join(str(n) for n in one) for one in self.shapes)
            raise InputError(
                f"{path} has the shape {'x'.join(str(n) for n in shape)}, but the challenge's images are {expected}; "
                "take the images of the challenge as they are."
            )
        if shape != self.shapes[0]:
            _logger.warning(
                "%s has the shape %s: its fields are not in the axis order %s of the challenge's NIfTI release.",
                *(path, shape, self.shapes[0]),
            )


def _looks_like_labels(image: torch.Tensor) -> bool:
    """Whether values are integers of which there are few, or that neighbours mostly share."""
    if not bool((image == image.round()).all()):
        return False
    inside = image != 0
    equal = both = 0
    for axis in range(1, image.ndim):
        first, second = slice(0, -1), slice(1, None)
        here, there = (tuple([slice(None)] * axis + [part]) for part in (first, second))
        pairs = inside[here] & inside[there]
        both += int(pairs.sum())
        equal += int((pairs & (image[here] == image[there])).sum())
    return equal > _EQUAL_NEIGHBOURS * both or image.unique().numel() <= _FEWEST_VALUES

# SPDX-License-Identifier: Apache-2.0
"""Shape and place of decoded subjects, known without decoding each of them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import nibabel
import torch
from monai.data import MetaTensor
from nibabel.filebasedimages import ImageFileError

from common.data.cache import SubjectCache


class Outlines:
    """Images that take no memory, on the grids of the subjects' own.

    A subject in memory is asked itself. Of the others one is decoded for each kind of header in their files, as files
    with one header come out of the preprocessing on one grid. Of pickles, which have no header, nothing is known.

    Args:
        data: subjects, as the data set lists them.
        subjects: the same, decoded.
    """

    def __init__(self, data: Sequence[dict[str, Any]], subjects: SubjectCache) -> None:
        self.data, self.subjects = data, subjects
        self._of_header: dict[Hashable, MetaTensor] = {}

    def __getitem__(self, index: int) -> MetaTensor | None:
        """Of the subject's image, or label map where images are made of these; None where nothing is known."""
        if index < self.subjects.cache_num:
            return _outline(self.subjects[index])
        header = _header(self.data[index])
        if header is not None and header not in self._of_header:
            self._of_header[header] = _outline(self.subjects[index])
        return None if header is None else self._of_header[header]


def _header(subject: dict[str, Any]) -> Hashable:
    path = subject.get("image", subject.get("label"))
    try:
        image: Any = nibabel.load(str(path))
    except (ImageFileError, OSError):
        return None
    return image.shape, image.affine.tobytes(), int(image.header.get("xyzt_units", 0))


def _outline(subject: dict[str, Any]) -> MetaTensor:
    image = subject["image"] if isinstance(subject.get("image"), torch.Tensor) else subject["label"]
    affine = image.affine if isinstance(image, MetaTensor) else torch.eye(4)
    return MetaTensor(torch.zeros(1).expand(image.shape), affine=affine)

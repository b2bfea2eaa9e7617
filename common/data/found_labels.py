# SPDX-License-Identifier: Apache-2.0
"""The labels of a data set that nobody has named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from common.data.transforms import LoadSubjectd

LABEL = "label"


def found_labels(subjects: Sequence[Mapping[str, Any]]) -> list[int]:
    """What label maps hold, in ascending order and without the background 0; nothing where there are no maps.

    Every map is read once.

    Args:
        subjects: as :func:`common.data.read_section` gives them.

    Raises:
        InputError: as :class:`common.data.LoadSubjectd`.
    """
    load = LoadSubjectd(LABEL)
    maps = (load(subject)[LABEL] for subject in subjects if LABEL in subject)
    return sorted({value for labels in maps for value in torch.unique(labels.as_tensor()).tolist()} - {0})

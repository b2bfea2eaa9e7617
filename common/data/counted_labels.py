# SPDX-License-Identifier: Apache-2.0
"""Which labels count, whether a label map has them, and their numbers as the consecutive classes of a loss."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.checks import InputError

PRESENT = "labels_present"
"""Entry of a subject: each label that counts, and whether its label map has it."""
_SHOWN = 8


def labels_that_count(named: Any, otherwise: Iterable[int]) -> list[int]:
    """The labels that a person names, or those of the data set.

    Args:
        named: distinct whole numbers, of any size and sign; None where none are named.
        otherwise: what counts then; it may be nothing.

    Returns:
        The labels in their order.

    Raises:
        InputError: ``named`` is something else, or names nothing but the background 0.
    """
    if named is None:
        return list(otherwise)
    labels = list(named) if isinstance(named, list | tuple | range) else [named]
    if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels) or isinstance(named, int):
        raise InputError(f'--labels is {named!r}: give a list of whole numbers, such as "[1,2,5]".')
    if len(set(labels)) < len(labels) or not set(labels) - {0}:
        raise InputError(f"--labels is {labels}: name each label once, and at least one beside the background 0.")
    return labels


def presence(values: Iterable[int], labels: Iterable[int]) -> dict[int, bool]:
    """Whether each label is among the values of a label map."""
    there = set(values)
    return {label: label in there for label in labels}


def check_presence(maps: Sequence[Mapping[int, bool]]) -> str | None:
    """What a person should know of the labels that count in all label maps of a data set.

    Args:
        maps: :func:`presence` of each label map.

    Returns:
        A sentence on labels that no map has, or None.

    Raises:
        InputError: no map has a label that counts.
    """
    labels = [label for label in maps[0] if label != 0]
    absent = [label for label in labels if not any(there[label] for there in maps)]
    if len(absent) == len(labels):
        raise InputError(
            f"None of the {len(maps)} label maps has a label that counts ({listed(labels)}): name with --labels those "
            "that they have."
        )
    if not absent:
        return None
    return (
        f"{len(absent)} of the {len(labels)} labels that count are in none of the {len(maps)} label maps: "
        f"{listed(absent)}; --labels names those that are."
    )


def listed(labels: Sequence[int]) -> str:
    """Labels for a sentence, the first ones of many."""
    shown = ", ".join(str(label) for label in labels[:_SHOWN])
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN} more"


class ClassesOfLabelsd(MapTransform):
    """Number the labels that count 1, 2, ... in ascending order; every other value becomes background 0.

    Args:
        keys: label maps (1, *spatial), whole numbers of any size and sign.
        labels: those that count; 0 among them is the background that it is anyway.
        allow_missing_keys: whether a subject may lack the labels.
    """

    def __init__(self, labels: Sequence[int], keys: KeysCollection = "label", allow_missing_keys: bool = True) -> None:
        super().__init__(keys, allow_missing_keys)
        self._values = torch.tensor(sorted(set(labels) - {0}))
        self._dtype = torch.uint8 if len(self._values) <= torch.iinfo(torch.uint8).max else torch.int16

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with classes, uint8 where 255 are enough, else int16."""
        subject = dict(data)
        for key in self.key_iterator(subject):
            label = subject[key]
            found = torch.as_tensor(label.as_tensor() if isinstance(label, MetaTensor) else label).long()
            place = torch.searchsorted(self._values, found).clamp_(max=len(self._values) - 1)
            classes = ((place + 1) * (self._values[place] == found)).to(self._dtype)
            subject[key] = MetaTensor(classes, meta=label.meta) if isinstance(label, MetaTensor) else classes
        return subject

# SPDX-License-Identifier: Apache-2.0
"""Joining fine labels to the groups that are evaluated."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from common.checks import InputError

Lookup = Sequence[int] | Mapping[Any, int]


class LabelGroups(NamedTuple):
    """Which fine labels form which group; both None where labels are used as they are.

    Attributes:
        lookup: group of each label value, as a list (position = label) or a dictionary.
        evaluated: the groups that count in the mean Dice.
    """

    lookup: Lookup | None
    evaluated: list[int] | None


def read_label_groups(path: str | Path | None, numbering: str = "ids") -> LabelGroups:
    """Read which fine labels form which group.

    Args:
        path: JSON with "lookup_table" (group of label 0, 1, 2, ...) and "evaluation_groups" (groups that count in the
            mean Dice); None where labels are used as they are.
        numbering: "ids" for label maps with the positions of the table, "original" for those with the numbers of the
            source, which the file's "labels" name as {"id": {"original": number}}.

    Returns:
        Lookup and evaluated groups, both None without a file.

    Raises:
        InputError: the file is missing or lacks one of the lists, or the numbering is unknown.
    """
    if numbering not in ("ids", "original"):
        raise InputError(f"The label numbering {numbering!r} is unknown; it is ids or original.")
    if path is None:
        return LabelGroups(None, None)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        lookup = [int(group) for group in content["lookup_table"]]
        evaluated = [int(group) for group in content["evaluation_groups"]]
        if numbering == "original":
            original = {int(entry["original"]): lookup[int(label)] for label, entry in content["labels"].items()}
            strays = dict.fromkeys(content.get("dropped_original_numbers_stray_voxels", []), 0)
            return LabelGroups(original | strays, evaluated)
    except FileNotFoundError:
        raise InputError(f"The label group file {path} does not exist; give its path, or None for no groups.") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"The label group file {path} is not a JSON with the lists 'lookup_table' and 'evaluation_groups' "
            f"({type(error).__name__}: {error})."
        ) from error
    return LabelGroups(lookup, evaluated)


def read_group_names(path: str | Path | None) -> dict[int, str]:
    """Names of the groups, where the file of :func:`read_label_groups` has {"groups": {number: {"name": ...}}}.

    Args:
        path: the file, or None.

    Returns:
        Name of each named group; empty where there are none.
    """
    groups = {} if path is None else json.loads(Path(path).read_text(encoding="utf-8-sig")).get("groups", {})
    return {int(number): str(entry["name"]) for number, entry in groups.items()}


class MapLabelsd(MapTransform):
    """Replace every label by its group.

    Args:
        keys: label maps (1, *spatial), integers.
        lookup: group per label, as a list (position = label) or a dictionary; None leaves the labels as they are.
        allow_missing_keys: whether a subject may lack the labels.

    Raises:
        InputError: a label map has a value without an entry, a group is negative, or there is no entry.
    """

    def __init__(
        self, keys: KeysCollection = "label", lookup: Lookup | None = None, allow_missing_keys: bool = True
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self._table = None if lookup is None else _table(lookup)

    def __call__(self, data: Mapping[Any, Any]) -> dict[Hashable, Any]:
        """Return the subject with grouped labels, in the first of uint8, int16 and int32 where all groups fit."""
        subject = dict(data)
        if self._table is not None:
            for key in self.key_iterator(subject):
                subject[key] = self._map(subject[key], *self._table)
        return subject

    @staticmethod
    def _map(label: torch.Tensor, values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        plain = (label.as_tensor() if isinstance(label, MetaTensor) else label).long()
        place = torch.searchsorted(values, plain).clamp_(max=len(values) - 1)
        without = values[place] != plain
        if bool(without.any()):
            file = label.meta.get("filename_or_obj", "?") if isinstance(label, MetaTensor) else "?"
            raise InputError(
                f"The label map {file} has the value {int(plain[without].min())}, which has no group in the lookup "
                "table; add it there or check that the file belongs to this data set."
            )
        mapped = groups[place]
        return MetaTensor(mapped, meta=label.meta) if isinstance(label, MetaTensor) else mapped


def _table(lookup: Lookup) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels in ascending order, int64, and their groups."""
    entries = lookup.items() if isinstance(lookup, Mapping) else enumerate(lookup)
    groups = {int(label): int(group) for label, group in entries}
    top = max(groups.values(), default=-1)
    wrong = [pair for pair in groups.items() if not 0 <= pair[1] <= torch.iinfo(torch.int32).max]
    if wrong or not groups:
        raise InputError(f"The lookup table has the entry {wrong[:1] or []}; groups are 0 to 2147483647.")
    dtype = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if top <= torch.iinfo(kind).max)
    labels = sorted(groups)
    return torch.tensor(labels), torch.tensor([groups[label] for label in labels], dtype=dtype)

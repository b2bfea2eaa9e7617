# SPDX-License-Identifier: Apache-2.0
"""The template of a BIDS app: its name, its label maps and the tables of their names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.checks import InputError
from common.data.bids import BidsFile, parse_name, read_tsv
from common.io.nifti import read_grid, read_labels

_NAMED_BY = ("atlas", "seg", "desc")
"""Entities of a label map that say which one it is, as TemplateFlow names them."""


@dataclass(frozen=True)
class Template:
    """An image to which participants are registered.

    Attributes:
        path: of the image.
        name: as names of files have it, letters and digits.
        labels: label maps that are brought to the participants, by the name that ``desc`` takes.
    """

    path: Path
    name: str
    labels: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path, name: str | None = None, labels: Sequence[Path] = ()) -> Template:
        """A template by its files.

        Args:
            path: of the image; of a file that TemplateFlow names, such as tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz,
                the name is taken from there, of others it is the letters and digits of the file name.
            name: another one.
            labels: label maps in its world; their grids may be others.

        Raises:
            InputError: a file cannot be read, the name is none for BIDS, or two label maps have one name.
        """
        if name is None:
            parsed = parse_name(path)
            name = parsed.entities["tpl"] if parsed is not None and "tpl" in parsed.entities else _plain(path)
        if not re.fullmatch(r"[0-9a-zA-Z+]+", name):
            raise InputError(f"{name!r} is no name for BIDS: give --template-name letters and digits alone.")
        maps: dict[str, Path] = {}
        for file in (path, *labels):
            read_grid(file)
        for file in labels:
            if maps.setdefault(_label_name(file), file) is not file:
                raise InputError(f"{file} and {maps[_label_name(file)]} have one name for BIDS: rename one of them.")
        return cls(path.resolve(), name, maps)


def _label_name(path: Path) -> str:
    parsed = parse_name(path)
    known = {} if parsed is None else parsed.entities
    return "".join(known[key] for key in _NAMED_BY if key in known) or _plain(path)


def _plain(path: Path) -> str:
    return re.sub(r"[^0-9a-zA-Z]", "", path.name.split(".")[0])


def names_of_labels(path: Path) -> str:
    """The table of a label map as BIDS has it: ``index`` and ``name``, separated by tabs.

    It is the TSV of the same name beside the label map, or with fewer entities, as TemplateFlow has it; without one,
    the numbers of the map are its names.

    Raises:
        InputError: the table has no such columns, or the map cannot be read.
    """
    table = _table_of(path)
    if table is None:
        labels, _ = read_labels(path)
        return "index\tname\n" + "".join(f"{label}\t{label}\n" for label in labels.unique().tolist() if label)
    rows = read_tsv(table)
    if rows and not {"index", "name"} <= rows[0].keys():
        raise InputError(f"{table} has no columns index and name: name them so, or take the table away.")
    return table.read_text(encoding="utf-8-sig")


def _table_of(path: Path) -> Path | None:
    same = path.with_name(f"{path.name.split('.')[0]}.tsv")
    if same.is_file():
        return same
    label = parse_name(path)
    if label is None:
        return None
    tables = [parse_name(file) for file in sorted(path.parent.glob(f"*_{label.suffix}.tsv"))]
    fitting: list[BidsFile] = [table for table in tables if table and table.entities.items() <= label.entities.items()]
    return max(fitting, key=lambda table: len(table.entities)).path if fitting else None

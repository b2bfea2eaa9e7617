# SPDX-License-Identifier: Apache-2.0
"""Tables and JSON files, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.files import write_bytes


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV; the columns are all keys in the order of their first appearance, floats get six digits."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    write_bytes(path, text.getvalue().encode())


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Rows of a CSV as text; an empty list when there is no such file.

    Raises:
        InputError: see :func:`read_table`.
    """
    return list(read_table(path)[1].values()) if Path(path).is_file() else []


def read_table(path: str | Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Columns and rows of a CSV as text; blank lines and spaces after commas do not count.

    Args:
        path: text in UTF-8, with or without the mark that Excel begins it with.

    Returns:
        Names of the columns; and the rows by the numbers of their lines.

    Raises:
        InputError: when the file is no text, names a column twice, or has a row of another length than its header.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, skipinitialspace=True)
            names = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: save it as text in UTF-8, separated by commas.") from error
    repeated = [name for n, name in enumerate(names) if name in names[:n]]
    if repeated:
        raise InputError(f"{path} has two columns of the name {repeated[0]!r}: rename or remove one.")
    for line, row in rows:
        if len(row) != len(names):
            raise InputError(f"{path}, line {line}: {len(row)} values, but the header has {len(names)} columns.")
    return names, {line: dict(zip(names, row, strict=True)) for line, row in rows}


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON that every reader accepts: NaN becomes null, infinities the texts "inf" and "-inf"."""
    write_bytes(path, (json.dumps(_plain(content), indent=2) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

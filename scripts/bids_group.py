# SPDX-License-Identifier: Apache-2.0
"""The level "group" of a BIDS app: a table of the figures of all scans."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.bids import read_object
from common.io.files import write_bytes
from common.io.tables import write_json

_COLUMNS = {
    "participant_id": "The participant.",
    "scan": "Beginning of the names of its files.",
    "template": "Name of the template.",
    "folded_percent": "Voxels of the template's grid at which the transform folds, in percent.",
    "largest_displacement_voxels": "Largest displacement beyond the affine alignment, in voxels of the template.",
    "inverse_residual_voxels": "How far there and back misses at most, in voxels of the template.",
    "inverse": "Whether there is a transform back, and labels in the space of the scan.",
    "seconds": "Time that it took.",
}


def write_group_table(out: Path, suffix: str) -> str:
    """Write ``group_<suffix>.tsv``, a row for each finished scan and template, and what its columns are as JSON.

    Args:
        out: folder of the derivative.
        suffix: of the scans.

    Returns:
        A sentence that says what was written.

    Raises:
        InputError: no scan of this suffix is finished, or a record is damaged.
    """
    records = [read_object(path) for path in sorted((out / "logs").glob(f"*_from-{suffix}_to-*_registration.json"))]
    rows = [_row(record) for record in records if record.get("finished")]
    if not rows:
        raise InputError(f"{out} has no registered {suffix} images: run the level participant first.")
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*_COLUMNS], delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = out / f"group_{suffix}.tsv"
    write_bytes(path, text.getvalue().encode())
    write_json(path.with_suffix(".json"), {name: {"Description": meaning} for name, meaning in _COLUMNS.items()})
    return f"{path}: {len(rows)} scan(s)."


def _row(record: dict[str, Any]) -> dict[str, Any]:
    figures = record["figures"]
    known = {
        **{name: figures.get(name, "n/a") for name in _COLUMNS},
        "participant_id": record["participant_id"],
        "scan": record["scan"],
        "template": record["template_name"],
        "inverse": "n/a" if record["lacks"] else "yes",
        "seconds": record["seconds"],
    }
    return {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in known.items()}

# SPDX-License-Identifier: Apache-2.0
"""Finished pairs of an evaluation on disk, so that a killed run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.evaluation.pair_files import PairFiles
from common.io.files import write_bytes
from common.io.run_record import RunRecord

FOLDER = "pairs"
SETTINGS = "settings.json"


class FinishedPairs:
    """One small JSON per finished pair in a folder of its own, removed when the tables are written.

    Args:
        output_dir: folder of the evaluation.
        settings: what the figures depend on.
        overwrite: whether pairs that were measured with other settings are forgotten.

    Raises:
        InputError: when the folder cannot be written to, or holds pairs that were measured with other settings.
    """

    def __init__(self, output_dir: Path, settings: Mapping[str, Any], overwrite: bool = False) -> None:
        self.folder = output_dir / FOLDER
        self._made = [path for path in (output_dir, *output_dir.parents) if not path.exists()]
        record = RunRecord(self.folder / SETTINGS, output_dir, "unfinished results", settings, option="--output")
        if overwrite:
            self.remove()
        elif record.path.is_file():
            record.read()
        record.write()

    def case(self, pair: PairFiles) -> dict[str, Any] | None:
        """Figures of a pair, None while it is not finished or where one of its files is another one by now."""
        content = _content(self._path(pair))
        if not isinstance(content, dict) or content.get("files") != _state(pair) or "case" not in content:
            return None
        case = dict(content["case"])
        for name, table in case.items():
            if name.endswith("_per_label"):
                case[name] = {int(label): value for label, value in table.items()}
        return case

    def keep(self, pair: PairFiles, case: Mapping[str, Any]) -> None:
        """Write the figures of a finished pair.

        Raises:
            InputError: when it cannot be written.
        """
        write_bytes(self._path(pair), json.dumps({"files": _state(pair), "case": case}).encode())

    def remove(self) -> None:
        """Delete the finished pairs and what belongs to them; other files stay."""
        if self.folder.is_dir():
            for path in self.folder.glob("*.json"):
                path.unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()

    def discard_if_empty(self) -> None:
        """Leave nothing behind when no pair was finished."""
        if [path.name for path in self.folder.glob("*")] == [SETTINGS]:
            self.remove()
            for path in self._made:
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def _path(self, pair: PairFiles) -> Path:
        return self.folder / f"{pair.name.replace('/', '_')}.json"


def is_unfinished(output_dir: Path) -> bool:
    """Whether an evaluation was begun in a folder and did not get to its end."""
    return (output_dir / FOLDER / SETTINGS).is_file()


def _state(pair: PairFiles) -> list[list[Any]]:
    """What changes when the list names other files for a pair, or one of them is replaced."""
    sides = (pair.moving, pair.fixed, pair.moving_label, pair.fixed_label, pair.fixed_mask)
    points = (path for files in pair.landmarks for path in (files.moving, files.fixed))
    paths = [Path(path) for path in (pair.field, pair.inverse, *sides, *points) if path is not None]
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _content(path: Path) -> Any:
    """Content of a JSON, None where there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None

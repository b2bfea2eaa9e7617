# SPDX-License-Identifier: Apache-2.0
"""The record of an output folder of inference: what is finished there, and what it was made with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.data.request import Request, pair_name
from common.engine.registration_dicom import check_series
from common.engine.registration_files import ALL, FIELDS, chosen_outputs
from common.io.run_record import RunRecord
from common.io.tables import write_csv

logger = logging.getLogger(__name__)
LEDGER = "provenance.json"
PAIRS = "pairs.csv"
"""Pair list of the fields, as ``scripts/evaluate.py --pairs`` takes it."""


class RegistrationFolder:
    """The output folder of an inference: what is finished there, and with which settings.

    ``provenance.json`` lists the finished pairs, ``pairs.csv`` their fields, where there are any, for
    ``scripts/evaluate.py``. A run that was interrupted goes on with the others; a run with other settings or other
    scans of the same names is refused.

    Args:
        output_dir: the folder.
        settings: what the result depends on, JSON-ready; paths of files are replaced by their SHA-256.
        overwrite: whether finished pairs are made anew.
        outputs: what is written of each pair, see :func:`common.engine.registration_files.chosen_outputs`.

    Raises:
        InputError: for an output that there is not; on :meth:`remaining`, when two pairs have one name, a scan is not
            of the kind that an output needs, or everything is finished or was made with other settings.
    """

    def __init__(
        self,
        output_dir: str | Path,
        settings: Mapping[str, Any],
        overwrite: bool = False,
        outputs: str | Sequence[str] = ALL,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.outputs = chosen_outputs(outputs)
        settings = {**settings, "outputs": [*self.outputs]}
        self._record = RunRecord(self.output_dir / LEDGER, self.output_dir, "registrations", settings)
        self.overwrite = overwrite
        self.pairs: dict[str, dict[str, Any]] = {}
        self._claimed = False

    def remaining(self, request: Request) -> list[tuple[int, int]]:
        """The pairs of a request that are not finished yet, (moving, fixed) indices."""
        finished = self._finished()
        left = []
        names = set()
        for moving, fixed in request.pairs:
            name = pair_name(request.subjects[moving]["id"], request.subjects[fixed]["id"])
            if name in names:
                raise InputError(
                    f"There are two pairs {name}: list each pair once, and give images file names of their own."
                )
            names.add(name)
            self._check_unrecorded(name)
            scans = {"moving": request.subjects[moving]["image"], "fixed": request.subjects[fixed]["image"]}
            if name not in finished:
                check_series(self.outputs, **scans)
                left.append((moving, fixed))
            elif {side: finished[name].get(side) for side in scans} != scans:
                raise self._record.refusal([f"image of {name}"])
        if not left:
            raise InputError(
                f"The {len(request.pairs)} pair(s) are registered in {self.output_dir} already: choose another "
                "--output_dir, or make them anew with --overwrite true."
            )
        if finished:
            logger.info("%d pair(s) are finished in %s; %d remain.", len(finished), self.output_dir, len(left))
        self.pairs = finished
        return left

    def claim(self) -> None:
        """Write the record before the first files: should the run be interrupted, they are known to be its own."""
        if not self._claimed:
            self._write()
            self._claimed = True

    def record(self, name: str, entry: dict[str, Any]) -> None:
        """Note a pair whose files are all written."""
        self.pairs[name] = entry
        self._write()

    def _write(self) -> None:
        field = next((ending for name, ending in FIELDS.items() if name in self.outputs), None)
        if field is not None:
            write_csv(self.output_dir / PAIRS, [self._row(name, entry, field) for name, entry in self.pairs.items()])
        self._record.write(pairs=self.pairs)

    def _row(self, name: str, entry: Mapping[str, Any], field: str) -> dict[str, Any]:
        back = f"{name}_inverse_ddf.nii.gz"
        return {
            "moving": entry["moving_id"],
            "fixed": entry["fixed_id"],
            "field": f"{name}_{field}",
            **({"inverse": back} if back in entry["files"] else {}),
            "seconds": entry["network_seconds"],
        }

    def _check_unrecorded(self, name: str) -> None:
        if self.overwrite or self._record.path.is_file():
            return
        foreign = sorted(self.output_dir.glob(f"{name}_*"))
        if foreign:
            raise self._record.unknown(foreign[0])

    def _finished(self) -> dict[str, dict[str, Any]]:
        if self.overwrite or not self._record.path.is_file():
            return {}
        (pairs,) = self._record.read("pairs")
        return dict(pairs)

# SPDX-License-Identifier: Apache-2.0
"""One scan of a BIDS app: registered, written under its names, recorded; what is there is not made again."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from common.api import Bundle, Deformation, Result
from common.data.bids import BidsFile, metadata_of
from common.io.files import write_bytes
from common.io.run_record import RunRecord
from scripts.bids_derivative import Derivative, ScanOutputs

logger = logging.getLogger(__name__)


class ScanRegistration:
    """The registration of one scan to the template of a derivative.

    A record in ``logs`` says what the results were made with, before the first of them is written. Those of the same
    settings are kept, and what is missing is made; those of others, or without a record, are refused.

    Args:
        scan: of the participant.
        derivative: where the results go.
        bundle: that registers.
        options: of the bundle, for the record.
        overwrite: whether results that are there are made anew.

    Attributes:
        name: how the names of its files begin, such as "sub-01".
    """

    def __init__(
        self, scan: BidsFile, derivative: Derivative, bundle: Bundle, options: Mapping[str, Any], overwrite: bool
    ) -> None:
        self.name = scan.prefix
        self.scan, self.derivative, self.bundle, self.overwrite = scan, derivative, bundle, overwrite
        self.outputs = ScanOutputs(derivative.out, scan, derivative.template)
        template, weights = derivative.template, bundle.folder / "models" / "model.pt"
        settings = {
            "image": scan.path,
            "template": template.path,
            **{f"labels {name}": path for name, path in template.labels.items()},
            "bundle": f"{bundle.name} {bundle.version}",
            "weights": options.get("ckpt_path", weights if weights.is_file() else None),
            **{f"option {name}": value for name, value in options.items()},
        }
        self._record = RunRecord(self.outputs.record, derivative.out, "results", settings, "OUT")

    def run(self) -> str | None:
        """Make what is missing.

        Returns:
            A sentence where the way back cannot be had; None where all is there.

        Raises:
            InputError: as reading and registering do, and where results are there that these settings have not made.
        """
        lacks, missing = self._state()
        if missing:
            lacks = self._make(missing)
        return lacks

    def _state(self) -> tuple[str | None, list[Path]]:
        """What an earlier run said of the way back, and the files that are to be made."""
        files = self.outputs.files
        there = [path for path in files if path.exists()]
        if self.overwrite or not (there or self._record.path.exists()):
            return None, files
        if not self._record.path.exists():
            raise self._record.unknown(there[0])
        finished, lacks = self._record.read("finished", "lacks")
        if not finished:
            return None, files
        wanted = files if lacks is None else [path for path in files if path not in self._by_way_back]
        return lacks, [path for path in wanted if path not in there]

    @property
    def _by_way_back(self) -> list[Path]:
        return [self.outputs.inverse, *self.outputs.labels.values()]

    def _make(self, missing: list[Path]) -> str | None:
        began = time.perf_counter()
        skull_stripped = bool(metadata_of(self.scan, self.derivative.source).get("SkullStripped", False))
        result = self.bundle.register(moving=self.scan.path, fixed=self.derivative.template.path)
        lacks = None
        if result.inverse is None:
            lacks = (
                "the field folds, so that the way back and labels are missing: use stronger smoothness (--options "
                '"--smoothness 2" with --io_steps) or a bundle whose fields do not fold.'
            )
            missing = [path for path in missing if path not in self._by_way_back]
        self._record.write(finished=False, lacks=lacks)
        writers = self._writers(result)
        # Whether they may be replaced has been decided.
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            writers[path](path)
        self.derivative.write_sidecars(self.scan, self.outputs, skull_stripped)
        self._record.write(
            finished=True,
            lacks=lacks,
            scan=self.scan.prefix,
            participant_id=f"sub-{self.scan.entities['sub']}",
            suffix=self.scan.suffix,
            template_name=self.derivative.template.name,
            source=self.derivative.uri(self.scan.path),
            template_image=self.derivative.uri(self.derivative.template.path),
            files=[path.relative_to(self.derivative.out).as_posix() for path in self.outputs.files if path.exists()],
            seconds=round(time.perf_counter() - began, 1),
            figures={**result.figures, **result.registration.inverse_figures()},
        )
        return lacks

    def _writers(self, result: Result) -> dict[Path, Callable[[Path], Any]]:
        """How each file is written."""
        outputs = self.outputs
        writers: dict[Path, Callable[[Path], Any]] = {}
        writers[outputs.transform] = partial(result.transform.save, overwrite=True)
        writers[outputs.warped] = partial(result.warped.save, overwrite=True)
        writers[outputs.panel] = lambda path: _save_panel(result, path)
        if (back := result.inverse) is not None:
            writers[outputs.inverse] = partial(back.save, overwrite=True)
            for name, path in outputs.labels.items():
                writers[path] = partial(self._save_labels, back, self.derivative.template.labels[name])
        return writers

    def _save_labels(self, back: Deformation, label: Path, path: Path) -> None:
        back.apply(label, self.scan.path, mode="nearest").save(path, overwrite=True)


def _save_panel(result: Result, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder, outputs="panel")
        (panel,) = Path(folder).glob("*panel.png")
        write_bytes(path, panel.read_bytes())

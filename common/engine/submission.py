# SPDX-License-Identifier: Apache-2.0
"""Challenge submissions: the listed pairs, one field each, and a folder that is checked before it counts as done."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from common.checks import InputError
from common.cli import sentence_of
from common.data.request import Request
from common.engine.batch import registered
from common.engine.clock import NetworkClock
from common.io.challenge_fields import FORMATS, field_name
from common.io.files import replacing
from common.io.provenance import peak_memory
from common.io.run_record import RunRecord
from common.spatial.finite import check_network_field

logger = logging.getLogger(__name__)
_NAMED = 5
"""How many files an error names."""


class SubmissionFolder:
    """The fields of a submission: which are there, which are missing, and whether all of them are fit.

    A record beside the fields says what made them, so that an interrupted submission goes on with the missing pairs
    and never mixes the fields of two networks.

    Args:
        fields_dir: folder of the fields, which holds nothing else that is visible.
        record: JSON file of the finished pairs.
        request: subjects and pairs of the challenge's list.
        challenge: a key of ``common.io.challenge_fields.FORMATS``.
        settings: what the fields depend on, JSON-ready; paths of files are replaced by their SHA-256.
        naming: "short" or "long" names, see ``common.io.challenge_fields.NAMINGS``.
        archive: zip of the folder to be made in the end, or None.
        overwrite: whether fields that exist are made anew.

    Attributes:
        left: (moving, fixed) indices of the pairs that have no field yet.

    Raises:
        InputError: a pair is listed twice, or the folder holds other files or fields of other settings or images.
    """

    def __init__(
        self,
        fields_dir: str | Path,
        record: str | Path,
        request: Request,
        challenge: str,
        settings: Mapping[str, Any],
        naming: str = "short",
        archive: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self.fields_dir = Path(fields_dir)
        self.archive = None if archive is None else Path(archive)
        self.request, self.challenge, self.naming, self.overwrite = request, challenge, naming, overwrite
        self._record = RunRecord(record, fields_dir, "fields", settings)
        self.packed: str | None = None
        self.pairs: dict[str, tuple[int, int]] = {}
        for moving, fixed in request.pairs:
            name = self._name(moving, fixed)
            if name in self.pairs:
                raise InputError(f"The list names the pair of {name} twice; correct the data list.")
            self.pairs[name] = (moving, fixed)
        self._check_folder()
        self.made = self._recorded()
        self.left = [pair for name, pair in self.pairs.items() if name not in self.made]

    def _name(self, moving: int, fixed: int) -> str:
        subjects = self.request.subjects
        return field_name(self.challenge, subjects[moving], subjects[fixed], self.naming)

    def check_images(self, transform: Callable[[dict[str, str]], Any]) -> None:
        """Decode and check the images of the missing pairs once, so that no error comes after hours of work.

        Args:
            transform: what the data set does with a subject.

        Raises:
            InputError: for the first image that cannot be used.
        """
        for index in sorted({index for pair in self.left for index in pair}):
            try:
                transform(self.request.subjects[index])
            except RuntimeError as error:  # MONAI's wrapping of what a transform raises
                sentence = sentence_of(error)
                if sentence is None:
                    raise
                raise InputError(sentence) from error

    def begin(self) -> None:
        """Claim the folder: from now on its files are those of an interrupted run."""
        for remains in self.fields_dir.glob(".disp_*"):
            remains.unlink(missing_ok=True)
        if self.made:
            logger.info("%d of %d fields are there; the others follow.", len(self.made), len(self.pairs))
        self._write_record()

    def add(self, pair: Mapping[str, Any], **figures: Any) -> None:
        """Write the field of a registered pair, then note it.

        Args:
            pair: ``ddf`` (3, D, H, W), ``moving_id``, ``fixed_id``, ``path_moving``, ``path_fixed``.
            figures: for the record.
        """
        moving, fixed = ({"id": pair[f"{side}_id"], "image": pair[f"path_{side}"]} for side in ("moving", "fixed"))
        name = field_name(self.challenge, moving, fixed, self.naming)
        ddf = pair["ddf"].cpu().float()
        check_network_field(ddf, pair["moving_id"], pair["fixed_id"])
        FORMATS[self.challenge].write(self.fields_dir / name, ddf)
        images = {"moving": pair["path_moving"], "fixed": pair["path_fixed"]}
        self.made[name] = {**images, "shape": list(ddf.shape[1:]), **figures}
        self._write_record()

    def finish(self) -> None:
        """Check the whole folder, pack it if asked, and say so.

        Raises:
            InputError: naming fields that are missing, superfluous or unfit; nothing is packed then.
        """
        problems = [f"{name} is not of this submission" for name in self._foreign()]
        for name in self.pairs:
            if name not in self.made or not (self.fields_dir / name).is_file():
                problems.append(f"{name} is missing")
                continue
            problem = FORMATS[self.challenge].problem(self.fields_dir / name, self.made[name]["shape"])
            problems += [] if problem is None else [f"{name} {problem}"]
        if problems:
            raise InputError(
                f"The submission {self.fields_dir} is not complete: {_listed(problems)}. Delete what is damaged and "
                "run the same command again: it makes the missing fields."
            )
        packed = ""
        if self.archive is not None:
            self._pack(self.archive)
            packed = f", packed in {self.archive}"
        print(f"Submission complete: {len(self.pairs)} fields in {self.fields_dir} checked{packed}.")

    def _pack(self, archive: Path) -> None:
        """Zip with one folder in it; the fields are compressed already or do not compress."""
        self.packed = str(archive)
        self._write_record()
        with replacing(archive) as temporary, zipfile.ZipFile(temporary, "w") as content:
            for name in sorted(self.pairs):
                content.write(self.fields_dir / name, f"{self.fields_dir.name}/{name}")

    def _foreign(self) -> list[str]:
        """Visible files of the folder that do not belong there."""
        if not self.fields_dir.is_dir():
            return []
        known = {self.fields_dir / name for name in self.pairs} | {self._record.path}
        return sorted(p.name for p in self.fields_dir.iterdir() if p not in known and not p.name.startswith("."))

    def _check_folder(self) -> None:
        foreign = self._foreign()
        if foreign:
            raise InputError(
                f"The folder {self.fields_dir} must hold the fields of this submission alone, but has "
                f"{_listed(foreign)}; choose another --output_dir, or remove them."
            )
        if self.overwrite or self._record.path.is_file():
            return
        existing = [str(self.fields_dir / name) for name in self.pairs if (self.fields_dir / name).exists()]
        existing += [str(self.archive)] if self.archive is not None and self.archive.exists() else []
        if existing:
            raise self._record.unknown(Path(existing[0]))

    def _recorded(self) -> dict[str, dict[str, Any]]:
        """Finished fields of an earlier run with the same settings and images."""
        if self.overwrite or not self._record.path.is_file():
            return {}
        fields, self.packed = self._record.read("fields", "archive")
        changed = []
        if self.archive is not None and self.archive.exists() and self.packed != str(self.archive):
            changed.append("archive")
        for name, (moving, fixed) in self.pairs.items():
            images = {"moving": self.request.subjects[moving]["image"], "fixed": self.request.subjects[fixed]["image"]}
            if name in fields and {side: fields[name].get(side) for side in images} != images:
                changed.append(f"image of {name}")
        if changed:
            raise self._record.refusal(changed)
        return {name: fields[name] for name in self.pairs if name in fields and (self.fields_dir / name).is_file()}

    def _write_record(self) -> None:
        self._record.write(challenge=self.challenge, archive=self.packed, fields=self.made)


class SubmissionWriter:
    """Adds each registered pair to the submission.

    Args:
        folder: where.
    """

    def __init__(self, folder: SubmissionFolder) -> None:
        self.folder = folder
        self._clock = NetworkClock()

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self.folder.begin)
        self._clock.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write)

    def _write(self, engine: Engine) -> None:
        pairs = registered(engine.state.output)
        for pair in pairs:
            seconds = round(self._clock.seconds / len(pairs), 3)
            self.folder.add(pair, network_seconds=seconds, **peak_memory(engine.state.device))


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more

# SPDX-License-Identifier: Apache-2.0
"""What a folder of results was made with: an interrupted run goes on there, one with other settings is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.checks import InputError
from common.io.provenance import provenance
from common.io.tables import write_json

_NAMED = 5
"""How many changes a refusal names."""


class RunRecord:
    """A JSON that keeps the settings of a run, where they come from, and what is finished.

    Args:
        path: the file.
        folder: of the results, for messages.
        results: what they are, in the plural, such as "registrations".
        settings: what the results depend on; the content of files counts, not their names.
        option: of the command line that chooses the folder.
    """

    def __init__(
        self,
        path: str | Path,
        folder: str | Path,
        results: str,
        settings: Mapping[str, Any],
        option: str = "--output_dir",
    ) -> None:
        self.path, self.folder, self.results = Path(path), Path(folder), results
        self.settings = {name: fingerprint(value) for name, value in settings.items()}
        self._choice = f"choose another {option}, or replace %s with --overwrite true."

    def read(self, *entries: str) -> list[Any]:
        """What an earlier run with the same settings wrote.

        Args:
            entries: names of what is wanted.

        Raises:
            InputError: when the file is damaged, of another kind, or of a run with other settings.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            settings, *found = [content[entry] for entry in ("settings", *entries)]
            changed = [name for name, value in self.settings.items() if settings.get(name) != value]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.path} is damaged, or not the record of {self.results}: {self._choice % 'it'}"
            ) from error
        if changed:
            raise self.refusal(changed)
        return found

    def refusal(self, changed: Sequence[str]) -> InputError:
        """The error for results that must not be mixed, to be raised.

        Args:
            changed: what is another one by now: settings, or images of pairs.
        """
        return InputError(
            f"{self.folder} holds {self.results} that were made with another {' and '.join(changed[:_NAMED])}: "
            f"{self._choice % 'them'}"
        )

    def unknown(self, file: Path) -> InputError:
        """The error for a file without a record that says what made it, to be raised."""
        return InputError(f"{file} exists, and no {self.path.name} says where from: {self._choice % 'it'}")

    def write(self, **content: Any) -> None:
        """Replace the file by settings, provenance and ``content``, JSON-ready."""
        write_json(self.path, {**provenance(), "settings": self.settings, **content})


def fingerprint(value: Any) -> Any:
    """A setting as JSON keeps it, a file as the SHA-256 of its content.

    The same weights elsewhere are the same, others in the same place are not.
    """
    if isinstance(value, str | Path) and os.path.isfile(value):
        return hashlib.sha256(Path(value).read_bytes()).hexdigest()
    return json.loads(json.dumps(value, default=str))

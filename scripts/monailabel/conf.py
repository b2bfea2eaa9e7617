# SPDX-License-Identifier: Apache-2.0
"""What ``--conf NAME VALUE`` of the server says: words, read and checked before anything is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scripts.monailabel.client import WorkerError

NAMES = ("bundle", "options", "trust", "python", "labels", "atlases")


class Settings(NamedTuple):
    """Of the app.

    Attributes:
        bundle: what the worker loads: bundle, options, trust.
        python: interpreter of the environment of the bundles; None for that of the app.
        labels: value by name; empty where the store says them.
        atlases: how many labelled scans give their labels to another one.
    """

    bundle: dict[str, Any]
    python: str | None
    labels: dict[str, int]
    atlases: int


def settings_of(conf: Mapping[str, str]) -> Settings:
    """Read ``--conf``.

    Raises:
        WorkerError: when there is no bundle, a name is unknown or a value is of no use.
    """
    unknown = sorted(set(conf) - set(NAMES))
    if unknown:
        raise WorkerError(f"--conf {unknown[0]} is unknown; there are {', '.join(NAMES)}.")
    if not conf.get("bundle"):
        raise WorkerError("The app has no bundle: start it with --conf bundle NAME (name, folder or zip).")
    options = _read_json(conf.get("options", "{}"), "options", 'an object of options, such as {"affine": true}')
    bundle = {"bundle": _whole(conf["bundle"]), "options": options, "trust": _switch(conf.get("trust", "false"))}
    python = conf.get("python")
    if python and shutil.which(python) is None:
        raise WorkerError(f"--conf python {python} is no program: give the interpreter of the bundles' environment.")
    count = conf.get("atlases", "3")
    if not count.isdigit() or int(count) < 1:
        raise WorkerError(f"--conf atlases {count} is no number from 1 on.")
    return Settings(bundle, python, _labels(conf.get("labels")), int(count))


def _whole(bundle: str) -> str:
    """A folder or zip by its whole path: the worker starts in a folder of its own choice."""
    path = Path(bundle).expanduser()
    return str(path.resolve()) if path.exists() else bundle


def _labels(file: str | None) -> dict[str, int]:
    if file is None:
        return {}
    try:
        text = Path(file).read_text()
    except OSError as error:
        raise WorkerError(f"--conf labels {file}: {error.strerror}.") from error
    labels = _read_json(text, f"labels {file}", 'an object of values by name, such as {"brain stem": 35}')
    if not all(type(value) is int for value in labels.values()):
        raise WorkerError(f"--conf labels {file}: values of labels are whole numbers.")
    return labels


def _read_json(text: str, name: str, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise WorkerError(f"--conf {name} is no JSON ({error}): give {what}.") from error
    if not isinstance(found, dict):
        raise WorkerError(f"--conf {name} is not {what}.")
    return found


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise WorkerError(f"--conf trust {text} is neither true nor false.")
    return text.lower() == "true"

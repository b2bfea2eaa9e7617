# SPDX-License-Identifier: Apache-2.0
"""Where a bundle comes from: a folder, a zip or a name; and whether its code may run here.

The configurations of a bundle are code: MONAI evaluates their expressions and calls what they name. So is the package
that a zip brings. What lies beside this package belongs to it; anything else runs only when the caller says so.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import common
from common.checks import InputError
from common.io.archives import unpack

CONFIG = "configs/inference.json"
_PACKAGE = "registration_common_*"
"""What packages of releases are called: version and digest follow."""
_unpacked: dict[str, tempfile.TemporaryDirectory[str]] = {}
"""Folders by the digest of their zip, which live as long as the process: modules are read from them when needed."""


def find_bundle(source: str | os.PathLike[str], trust: bool) -> Path:
    """Folder of a bundle.

    Args:
        source: a folder, a zip that ``scripts/package.py`` has made, or the name of a bundle of this checkout or in
            MONAI's folder of downloads.
        trust: whether code from elsewhere may run.

    Raises:
        InputError: when there is no such bundle, it is code from elsewhere without ``trust``, or the zip is damaged.
    """
    path = Path(source).expanduser()
    if path.is_file():
        _check_trust(path, trust)
        return _unpack(path)
    folder = path if (path / CONFIG).is_file() else _named(str(source))
    if folder is None:
        raise _missing(path, str(source))
    if not _is_ours(folder):
        _check_trust(folder, trust)
    return folder.absolute()


def package_of(folder: Path) -> ModuleType:
    """The package whose code a bundle is made for: its own where it brings one of a release, else this one.

    Raises:
        InputError: for a release without ``api``.
    """
    found = sorted(path.parent.name for path in folder.glob(f"{_PACKAGE}/__init__.py"))
    if not found or found[0] == common.__name__:
        return common
    searched = [*sys.path]
    sys.path.insert(0, str(folder))
    try:
        package = importlib.import_module(found[0])
        importlib.import_module(f"{found[0]}.api")
    except ModuleNotFoundError as error:
        if error.name != f"{found[0]}.api":
            raise
        raise InputError(
            f"{folder} was packed by a release without an interface for Python: use python -m monai.bundle run, or "
            "pack the bundle anew."
        ) from error
    finally:
        sys.path[:] = searched
    return package


def _named(name: str) -> Path | None:
    """Folder of a bundle by its name."""
    if name != Path(name).name:
        return None
    places = (*_own_folders(), Path(torch.hub.get_dir()) / "bundle")
    return next((place / name for place in places if (place / name / CONFIG).is_file()), None)


def _own_folders() -> Iterator[Path]:
    """Where the bundles of this package lie: beside it, or around it where it is that of a zip."""
    package = Path(common.__file__).resolve().parent
    yield package.parent / "bundles"
    yield package.parent.parent


def _is_ours(folder: Path) -> bool:
    beside, around = _own_folders()
    whole = folder.resolve()
    return whole.parent == beside or (whole.parent == around and whole == Path(common.__file__).resolve().parents[1])


def _check_trust(path: Path, trust: bool) -> None:
    if not trust:
        raise InputError(
            f"{path} comes from elsewhere, and its configurations and modules are code that runs when it is loaded: "
            "look at it, or know who made it, and give trust=True."
        )


def _missing(path: Path, source: str) -> InputError:
    if path.exists():
        return InputError(f"{path} is not the folder of a bundle: it has no {CONFIG}.")
    known = [found.parents[1].name for place in _own_folders() for found in place.glob(f"*/{CONFIG}")]
    guess = difflib.get_close_matches(source, known, n=1)
    advice = f"did you mean {guess[0]!r}?" if guess else "give a folder, a zip, or the name of a bundle."
    return InputError(f"There is no bundle {source!r}: {advice}")


def _unpack(archive: Path) -> Path:
    """Folder of the bundle in a zip, unpacked once in a process and removed at its end."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest not in _unpacked:
        folder = tempfile.TemporaryDirectory(prefix="bundle_")
        unpack(archive, folder.name)
        _unpacked[digest] = folder
    (inside,) = Path(_unpacked[digest].name).iterdir()
    if not (inside / CONFIG).is_file():
        raise InputError(f"{archive} holds no bundle: a folder with {CONFIG} is expected in it.")
    return inside


def bundle_class(folder: Path) -> Any:
    """``Bundle`` of the package that a bundle is made for."""
    return importlib.import_module(f"{package_of(folder).__name__}.api").Bundle

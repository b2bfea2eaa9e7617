# SPDX-License-Identifier: Apache-2.0
"""Whether the folders that a workflow was given can serve it, and whether the code is that of its bundle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common
from common.checks import InputError


def check_bundle(bundle_root: str | Path) -> None:
    """Refuse a folder that is no bundle, and a ``common`` of another version than the bundle was made for.

    The latter happens when bundles of two clones share one process; in a zip the package has a name of its own.

    Raises:
        InputError: naming the folder, or both versions.
    """
    path = Path(bundle_root) / "configs" / "metadata.json"
    if not path.is_file():
        raise InputError(
            f"{bundle_root!r} is not the folder of a bundle (it has no configs/metadata.json): run from the bundle's "
            "folder, or add --bundle_root FOLDER."
        )
    _check_version(json.loads(path.read_text(encoding="utf-8")))


def find_metadata(config_folder: Path, bundle_root: Path) -> Path | None:
    """``metadata.json`` beside a configuration or, where that lies elsewhere, of the bundle; None if there is none."""
    candidates = (config_folder / "metadata.json", bundle_root / "configs" / "metadata.json")
    return next((path for path in candidates if path.is_file()), None)


def check_code(metadata: Path) -> None:
    """Refuse to run a bundle with the code of another one, which was imported first.

    Args:
        metadata: ``metadata.json`` of the bundle.

    Raises:
        InputError: the bundle was made for another version of ``common``, or brings one whose modules differ.
    """
    content = json.loads(metadata.read_text(encoding="utf-8"))
    if "common_version" in content:
        _check_version(content)
    own, loaded = metadata.parents[1] / common.__name__, Path(common.__file__).parent
    if own.is_dir() and not _are_same(own, loaded):
        raise InputError(
            f"This bundle brings {own}, but a package 'common' that differs was loaded from {loaded}: run each bundle "
            "in a process of its own, from its own folder."
        )


def _are_same(one: Path, other: Path) -> bool:
    if one.samefile(other):
        return True
    modules = [sorted(path.relative_to(folder) for path in folder.rglob("*.py")) for folder in (one, other)]
    return modules[0] == modules[1] and all((one / m).read_bytes() == (other / m).read_bytes() for m in modules[0])


def _check_version(metadata: dict[str, Any]) -> None:
    wanted = metadata.get("common_version")
    if wanted != common.__version__:
        raise InputError(
            f"This bundle needs version {wanted} of 'common', but version {common.__version__} was loaded from "
            f"{Path(common.__file__).parent}: run each bundle in a process of its own, from its own folder."
        )


def check_writable(folder: str | Path, option: str = "--output_dir") -> None:
    """Make the folder and try to write there.

    Args:
        folder: of what will be written.
        option: of the command line that chooses it.

    Raises:
        InputError: naming the folder and the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(f"Cannot write to the folder {folder}: {error.strerror}; choose another {option}.") from error

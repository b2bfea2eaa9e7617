# SPDX-License-Identifier: Apache-2.0
"""Whether the folders that a workflow was given can serve it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

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
    wanted = json.loads(path.read_text()).get("common_version")
    if wanted != common.__version__:
        raise InputError(
            f"This bundle needs version {wanted} of 'common', but version {common.__version__} was loaded from "
            f"{Path(common.__file__).parent}: run each bundle in a process of its own, from its own folder."
        )


def check_writable(folder: str | Path) -> None:
    """Make the folder and try to write there.

    Raises:
        InputError: naming the folder and the reason.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise InputError(
            f"Cannot write to the folder {folder}: {error.strerror}; choose another --output_dir."
        ) from error

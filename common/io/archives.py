# SPDX-License-Identifier: Apache-2.0
"""Zips from elsewhere: looked through before anything of them is written, and unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath, PureWindowsPath

from common.checks import InputError

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What ``zipfile`` raises for content that is cut, changed, encrypted or packed in a way that it does not know."""


def unpack(archive: str | Path, folder: str | Path) -> Path:
    """Unpack the one folder that a zip of a bundle holds.

    Args:
        archive: the zip.
        folder: where its folder is made; made itself if need be.

    Returns:
        The folder, ``folder/NAME``.

    Raises:
        InputError: the zip is cut or damaged, holds anything but one folder, holds links or names that lead out of
            it, or the folder is there already.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as content:
            target = folder / _top(archive, content.infolist())
            if target.exists():
                raise InputError(f"{target} exists: remove it, or unpack into another folder.")
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=folder) as unfinished:
                # Reads every file to its end, where its checksum is compared.
                content.extractall(unfinished)
                shutil.move(Path(unfinished) / target.name, target)
    except _DAMAGE as error:
        raise InputError(
            f"{archive} is cut or damaged ({error}): remove it and download it again, nothing was unpacked."
        ) from error
    return target


def sha1(path: str | Path) -> str:
    """Checksum of a file, as MONAI's lists of bundles state it."""
    digest = hashlib.sha1(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _top(archive: Path, entries: list[zipfile.ZipInfo]) -> str:
    """Name of the one folder that holds all entries, none of which may lead out of it."""
    tops = set()
    for entry in entries:
        parts = PurePosixPath(entry.filename).parts
        if (
            PurePosixPath(entry.filename).is_absolute()
            or ".." in parts
            or PureWindowsPath(entry.filename).drive
            or "\\" in entry.filename
            or stat.S_ISLNK(entry.external_attr >> 16)
        ):
            raise InputError(
                f"{archive} has an entry {entry.filename!r} that may lead out of its folder: this is no bundle of "
                "scripts/package.py, nothing was unpacked."
            )
        tops |= set(parts[:1]) if len(parts) > 1 or entry.is_dir() else {""}
    if len(tops) != 1 or "" in tops:
        raise InputError(f"{archive} does not hold the one folder of a bundle; nothing was unpacked.")
    return tops.pop()

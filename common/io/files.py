# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.checks import InputError


@contextmanager
def replacing(path: str | Path, suffix: str = "") -> Iterator[Path]:
    """An empty file beside ``path`` to write to, flushed to disk and moved there in the end: never half a file.

    A block that fails or is interrupted leaves nothing behind.

    Args:
        path: the file, in a folder that is made if need be.
        suffix: of the temporary name, for writers that go by it.

    Raises:
        InputError: when the folder cannot be written to or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unlike those of `tempfile`, its permissions are what the user's umask says.
        temporary.touch(exist_ok=False)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # The folder may itself be a file.
        with suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        raise InputError(f"Cannot write {path}: {reason}.") from error


def write_bytes(path: str | Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: when the folder cannot be written to or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def first_line(error: Exception) -> str:
    """What an error of another library says, cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

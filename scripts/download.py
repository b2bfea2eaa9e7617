# SPDX-License-Identifier: Apache-2.0
"""Download a bundle with its checksum compared, and unpack it whole or not at all.

Example: ``python scripts/download.py eoir_shapes3d --index https://github.com/OWNER/REPO/releases/download/TAG``.
``python -m monai.bundle download`` fetches the same zip without looking at its checksum. Nothing of a bundle runs here.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.checks import InputError
from common.cli import run_tool
from common.io.archives import sha1, unpack
from scripts import zoo_index

TIMEOUT = 60
"""Seconds without any byte."""


def download(name: str, index: str, version: str | None = None, bundle_dir: str | Path = ".") -> Path:
    """Fetch a bundle and unpack it.

    Args:
        name: of the bundle.
        index: address of the folder or release page where ``models/model_info.json`` or ``model_info.json`` lies.
        version: None for the newest.
        bundle_dir: where the bundle's folder is made.

    Returns:
        The folder.

    Raises:
        InputError: there is no such bundle or version, nothing answers, the checksum is another one, the zip is
            damaged, or the folder exists.
    """
    where, known = _read_index(index.rstrip("/"))
    found = zoo_index.versions(known, name)
    if not found:
        names = sorted({key.partition("_v")[0] for key in known})
        raise InputError(f"{where} has no bundle {name!r}; it has {', '.join(names)}.")
    if version not in (None, *found):
        raise InputError(f"{where} has no version {version} of {name}; it has {', '.join(found)}.")
    entry = known[f"{name}_v{version or found[-1]}"]
    bundle_dir = Path(bundle_dir)
    if (bundle_dir / name).exists():
        raise InputError(f"{bundle_dir / name} exists: remove it, or choose another --bundle_dir.")
    bundle_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=bundle_dir) as unfinished:
        archive = Path(unfinished) / entry["source"].rpartition("/")[2]
        with _opened(entry["source"]) as answer, open(archive, "wb") as file:
            shutil.copyfileobj(answer, file)
        checksum = sha1(archive)
        if checksum != entry["checksum"]:
            raise InputError(
                f"{entry['source']} has the checksum {checksum}, but {where} says {entry['checksum']}: it was cut or "
                "changed on its way, nothing was unpacked; try again, or ask who publishes it."
            )
        folder = unpack(archive, unfinished)
        if folder.name != name:
            raise InputError(f"{entry['source']} holds a bundle {folder.name}, not {name}.")
        return folder.rename(bundle_dir / name)


def _read_index(address: str) -> tuple[str, zoo_index.Index]:
    """Where the index is, and what it says: in ``models`` as in a repository, or flat as on a release page."""
    places = [f"{address}/{zoo_index.PLACE.as_posix()}", f"{address}/{zoo_index.PLACE.name}"]
    try:
        with _opened(places[0]) as answer:
            return places[0], zoo_index.parse(answer.read(), places[0])
    except _NotFound:
        with _opened(places[1]) as answer:
            return places[1], zoo_index.parse(answer.read(), places[1])


class _NotFound(InputError):
    """There is nothing at this address, though somebody answers."""


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        kind = _NotFound if error.code == 404 else InputError
        raise kind(f"{url} answers {error.code} {error.reason}.") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"Cannot read {url}: {getattr(error, 'reason', error)}.") from error


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Download a bundle, compare its checksum with the index, and unpack it.",
        epilog="Example: python scripts/download.py eoir_shapes3d "
        "--index https://github.com/OWNER/REPO/releases/download/TAG",
    )
    options.add_argument("bundle", help="name of the bundle")
    options.add_argument("--index", required=True, help="address of the folder or release page with model_info.json")
    options.add_argument("--version", help="default: the newest")
    options.add_argument("--bundle_dir", type=Path, default=Path("."), help="where the folder goes; default: here")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    folder = download(arguments.bundle, arguments.index, arguments.version, arguments.bundle_dir)
    print(f"{folder}: checksum compared, nothing of it was run; its configs and modules are code that runs with it.")


if __name__ == "__main__":
    run_tool(main)

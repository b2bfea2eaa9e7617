# SPDX-License-Identifier: Apache-2.0
"""Pack a bundle into one zip that runs without this repository, or all of them into a zoo.

Example: ``python scripts/package.py eoir_shapes3d`` writes ``dist/eoir_shapes3d_v0.2.0.zip``. The same files give the
same zip, byte for byte. Inside, ``common`` has a name of its own, see :mod:`scripts.rename_common`.
``python scripts/package.py --all --index URL`` writes every bundle's zip, the index that MONAI reads, and a page.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.checks import InputError
from common.cli import add_switch
from common.io.archives import sha1, unpack
from common.io.files import write_bytes
from common.report import bundle_list
from scripts import zoo_index
from scripts.rename_common import PREFIX, rename_common

BUNDLES = ROOT / "bundles"
NEEDED = ("LICENSE", "configs/metadata.json", "common/__init__.py")
# What runs leave behind in the bundle's folder; common/data is another matter.
LEFT_OUT = {"outputs", "eval", "data"}
WEIGHTS = (".pt", ".ts", ".pt2")
EARLIEST = (1980, 1, 1, 0, 0, 0)


def bundle_names() -> list[str]:
    """Names of all bundles."""
    return sorted(path.parent.parent.name for path in BUNDLES.glob("*/configs/metadata.json"))


def find_bundle(name: str) -> Path:
    """Folder of a bundle.

    Raises:
        InputError: when there is none of that name, with those that exist.
    """
    existing = bundle_names()
    if name not in existing:
        raise InputError(f"There is no bundle {name!r}; these exist: {', '.join(existing)}.")
    return BUNDLES / name


def check_name(name: str) -> None:
    """Refuse a name that MONAI's lists of bundles would cut.

    Raises:
        InputError: it has "_v" in it, where ``get_all_bundles_list`` takes the version to begin.
    """
    if "_v" in name:
        raise InputError(
            f"{name} cannot be the name of a bundle, as MONAI reads what follows _v as the version: take a name "
            "without it, dpvfa_oasis for dp_vfa_oasis."
        )


def check_bundle(bundle: Path) -> tuple[str, str]:
    """Refuse a bundle that could not run on its own.

    Returns:
        Its version, and that of ``common``.

    Raises:
        InputError: when a file is missing, the metadata were written for another version of ``common``, or the name
            is none.
    """
    check_name(bundle.name)
    for name in NEEDED:
        if not (bundle / name).is_file():
            raise InputError(f"{bundle / name} is missing: a bundle needs {', '.join(NEEDED)}.")
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    if "version" not in metadata:
        raise InputError(f"{path} states no version: add one, like 0.1.0.")
    source = (bundle / "common" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    version = found[1] if found else None
    if version is None or metadata.get("common_version") != version:
        raise InputError(
            f"{path} was written for common {metadata.get('common_version')}, this is common {version}: run the "
            "bundle's tests and set common_version."
        )
    return str(metadata["version"]), version


def bundle_files(bundle: Path, with_weights: bool = True) -> Iterator[tuple[PurePosixPath, Path]]:
    """(name inside the bundle, file) of everything that a release holds, links followed, in a fixed order."""
    for folder, folders, files in os.walk(bundle, followlinks=True):
        inside = PurePosixPath(Path(folder).relative_to(bundle).as_posix())
        at_top = inside == PurePosixPath(".")
        folders[:] = sorted(
            name
            for name in folders
            if name != "__pycache__" and not name.startswith(".") and not (at_top and name in LEFT_OUT)
        )
        in_models = inside.parts[:1] == ("models",)
        for name in sorted(files):
            is_weights = name.endswith(WEIGHTS)
            wanted = with_weights and is_weights if in_models else not is_weights
            if wanted and not name.startswith(".") and not name.endswith(".pyc"):
                yield inside / name, Path(folder) / name


def pack(bundle: Path, output_dir: Path, with_weights: bool = True, overwrite: bool = False) -> Path:
    """Write ``<name>_v<version>.zip`` with the one top folder ``<name>``; its LICENSE begins with that of the weights.

    Returns:
        The zip. One that is there with the same content stays as it is.

    Raises:
        InputError: when the bundle is not complete, its weights are damaged or not finite, or the zip exists with
            another content and ``overwrite`` is not set.
    """
    version, common_version = check_bundle(bundle)
    target = output_dir / f"{bundle.name}_v{version}.zip"
    found = list(bundle_files(bundle, with_weights))
    for path in (path for _, path in found if path.suffix == ".pt"):
        _check_weights(path)
    files = [(name, path.read_bytes()) for name, path in found]
    weights = [str(name) for name, _ in files if name.suffix in WEIGHTS]
    if weights:
        terms = _terms(bundle, weights)
        files = [(name, terms + data if str(name) == "LICENSE" else data) for name, data in files]
    content = io.BytesIO()
    # Not compressed: what deflate makes depends on the library and its version.
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in rename_common(files, common_version):
            entry = zipfile.ZipInfo(f"{bundle.name}/{name}", EARLIEST)
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, data)
    if not target.exists() or (overwrite and target.read_bytes() != content.getvalue()):
        write_bytes(target, content.getvalue())
    elif target.read_bytes() != content.getvalue():
        raise InputError(
            f"{target} exists with another content: raise the version in metadata.json, or replace it with "
            "--overwrite true."
        )
    return target


def pack_all(output_dir: Path, url: str, with_weights: bool = True, overwrite: bool = False) -> list[Path]:
    """Write the zips of all bundles, the index, and the page ``index.html`` with the same as a table, ``bundles.md``.

    Args:
        output_dir: folder of the zoo; entries of earlier versions stay in its index.
        url: address below which the zips will lie.

    Returns:
        The zips.

    Raises:
        InputError: when a bundle is not complete, before anything is written; or as :func:`pack`.
    """
    bundles = [BUNDLES / name for name in bundle_names()]
    for bundle in bundles:
        check_bundle(bundle)
    archives = [pack(bundle, output_dir, with_weights, overwrite) for bundle in tqdm(bundles, "Bundles", disable=None)]
    new = {path.stem: {"checksum": sha1(path), "source": f"{url.rstrip('/')}/{path.name}"} for path in archives}
    zoo_index.write(output_dir, zoo_index.extend(output_dir, new, overwrite))
    rows = [bundle_list.row(path, new[path.stem]["source"], new[path.stem]["checksum"]) for path in archives]
    write_bytes(output_dir / "index.html", bundle_list.page(rows))
    write_bytes(output_dir / "bundles.md", bundle_list.markdown(rows).encode())
    return archives


def hub_folder(archive: Path, output_dir: Path) -> Path:
    """Unpack a zip for a model hub, which holds a bundle as a folder, with a card on top.

    Returns:
        ``output_dir/hub/<name>``.

    Raises:
        InputError: when the folder exists.
    """
    folder = unpack(archive, output_dir / "hub")
    write_bytes(folder / "README.md", bundle_list.card(bundle_list.row(archive, "", sha1(archive))).encode())
    return folder


def _terms(bundle: Path, weights: Sequence[str]) -> bytes:
    """What stands above the licence of the code in a zip with weights, which are under the terms of the data."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    return (
        "Code, configurations and documentation: Apache License, Version 2.0, below.\n"
        f"Weights ({', '.join(weights)}): {bundle_list.weights_terms(metadata)}.\n"
        "Data that they were trained on, and whom to credit: docs/data_license.txt.\n\n"
    ).encode()


def _check_weights(path: Path) -> None:
    from common.io.checkpoints import check_finite_weights, load_checkpoint

    content = load_checkpoint(path)
    if isinstance(content, Mapping):
        held = content.get("network")
        check_finite_weights(held if isinstance(held, Mapping) else content, str(path))


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Pack a bundle, with the whole of common, into <name>_v<version>.zip; or all of them into a zoo.",
        epilog="Example: python scripts/package.py eoir_shapes3d --output_dir dist",
    )
    options.add_argument("bundle", nargs="?", help="name of a folder in bundles, e.g. eoir_shapes3d")
    add_switch(options, "all", "pack every bundle, with models/model_info.json and index.html; wants --index")
    options.add_argument("--index", metavar="URL", help="address below which the zips of --all will lie")
    options.add_argument("--output_dir", type=Path, default=Path("dist"), help="default: %(default)s")
    add_switch(options, "hub", "write the folder for a model hub, too: hub/<name>, unpacked and with a card")
    add_switch(options, "without_weights", "leave models/*.pt, *.ts and *.pt2 out")
    add_switch(options, "overwrite", "replace a zip that exists with another content")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.all == bool(arguments.bundle) or arguments.all != bool(arguments.index):
        options.error("give the name of one bundle, or --all true with --index URL")
    how = (not arguments.without_weights, arguments.overwrite)
    try:
        if arguments.all:
            archives = pack_all(arguments.output_dir, arguments.index, *how)
        else:
            archives = [pack(find_bundle(arguments.bundle), arguments.output_dir, *how)]
        folders = [hub_folder(path, arguments.output_dir) for path in archives if arguments.hub]
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    for path in archives:
        print(_described(path))
    for path in folders:
        print(f"{path}: to be uploaded as it is")
    if arguments.all:
        print(f"{arguments.output_dir / zoo_index.PLACE}, {arguments.output_dir / 'index.html'}")
    return 0


def _described(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    weights = [name.rpartition("/")[2] for name in names if name.endswith(WEIGHTS)]
    (package,) = {name.split("/")[1] for name in names if name.split("/")[1].startswith(PREFIX)}
    return (
        f"{path}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB, "
        f"{'weights ' + ', '.join(weights) if weights else 'no weights'}; common is {package} inside."
    )


if __name__ == "__main__":
    sys.exit(main())

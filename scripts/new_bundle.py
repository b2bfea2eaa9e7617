# SPDX-License-Identifier: Apache-2.0
"""Make the folder of a new bundle: a method on a data set, wired as all the others.

Example: ``python scripts/new_bundle.py eoir hammers`` makes ``bundles/eoir_hammers``. Network and recipe come from a
bundle of the method, or are a start to work on for a network in ``common.networks`` that has no bundle yet; the data's
part comes from a bundle of the data set, or is a start of the plainest kind. What is left to write is marked TODO.

Names of methods may have underscores, those of data sets have none: the last one of a bundle's name divides the two.
"""

from __future__ import annotations

import argparse
import inspect
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common import networks
from common.checks import InputError
from common.cli import run_tool
from common.data import READERS
from scripts import wiring
from scripts.json_style import style
from scripts.package import check_name

PLAIN = "eoir_shapes3d"
"""Its data are plain NIfTI files with a list: how a data set without a bundle starts."""
NARROW = "brains"
"""Its bundles have networks for a processor: a new one takes the published width where there is one."""
TEMPLATE = Path(__file__).resolve().parent / "bundle_template"
TODO = "TODO"


def make_bundle(root: Path, method: str, dataset: str) -> Path:
    """Make ``bundles/<method>_<dataset>``, whole or not at all.

    Args:
        root: folder of the repository.
        method: that of a bundle, or a class of ``common.networks`` in small letters, with underscores at will.
        dataset: that of a bundle, or any new name.

    Returns:
        The folder.

    Raises:
        InputError: the bundle exists, a name is no name or has "_v" in it, or the method is unknown.
    """
    for name, pattern in ((method, r"[a-z][a-z0-9]*(_[a-z0-9]+)*"), (dataset, r"[a-z][a-z0-9]*")):
        if not re.fullmatch(pattern, name):
            raise InputError(
                f"{name!r} is no name for a method or data set; take small letters and digits, in that of a method "
                "underscores between them."
            )
    target = root / "bundles" / f"{method}_{dataset}"
    check_name(target.name)
    if target.exists():
        raise InputError(f"{target} exists; remove it first, or change it by hand and with scripts/wiring.py.")
    of_method, of_data = _source(root, method=method), _source(root, dataset=dataset)
    if of_method is None and _network(method) is None:
        known = {wiring.parts(bundle.name)[0] for bundle in _trained(root)}
        known |= {name.lower() for name in networks.__all__}
        raise InputError(
            f"There is no method {method!r}; these exist: {', '.join(sorted(known))}. First write "
            f"common/networks/{method}.py and name its class in common/networks/__init__.py."
        )
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}_", dir=target.parent))
    try:
        _fill(root, unfinished, target.name, of_method, of_data)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished)
        raise
    return target


def _trained(root: Path) -> list[Path]:
    """Bundles that a new one can be like."""
    return [bundle for bundle in wiring.bundles(root) if bundle.name not in wiring.UNTRAINED]


def _source(root: Path, method: str | None = None, dataset: str | None = None) -> Path | None:
    """The bundle of a method or data set to take from: the pattern if it is one, else the first as published."""
    folders = [
        bundle
        for bundle in _trained(root)
        if all(
            wanted in (None, part) for wanted, part in zip((method, dataset), wiring.parts(bundle.name), strict=True)
        )
    ]
    return min(
        folders,
        key=lambda folder: (folder.name != wiring.PATTERN, wiring.parts(folder.name)[1] == NARROW),
        default=None,
    )


def _network(method: str) -> Any:
    """The class of ``common.networks`` with the name of the method, or None."""
    written = method.replace("_", "")
    return next((getattr(networks, name) for name in networks.__all__ if name.lower() == written), None)


def _fill(root: Path, folder: Path, bundle: str, of_method: Path | None, of_data: Path | None) -> None:
    """Write all files of a bundle."""
    for name in ("configs", "docs", "models"):
        (folder / name).mkdir()
    (folder / "models" / ".gitkeep").touch()
    (folder / "common").symlink_to("../../common")
    for copied in wiring.COPIED:
        shutil.copy(root / "bundles" / wiring.PATTERN / copied, folder / copied)
    base = of_data or root / "bundles" / PLAIN
    texts = _texts(bundle, of_method, of_data)
    for file in wiring.OWN:
        if (base / "configs" / file).is_file():
            mine = wiring.read_config(base / "configs" / file)
            if of_data is None:
                _start_data(mine, file, texts["reader"])
            wired = wiring.wiring(root, file)
            _put_method(mine, file, wiring.parts(bundle)[0], of_method, wired)
            _put_texts(mine, file, texts)
            merged = wiring.merge(wired, mine, wiring.own_paths(bundle, file))
            (folder / "configs" / file).write_text(style(merged), encoding="utf-8")
    readme = Template((TEMPLATE / "README.md").read_text(encoding="utf-8")).substitute(texts)
    (folder / "docs" / "README.md").write_text(readme, encoding="utf-8")
    licence = of_data / "docs" if of_data else TEMPLATE
    shutil.copy(licence / "data_license.txt", folder / "docs")


def _texts(bundle: str, of_method: Path | None, of_data: Path | None) -> dict[str, str]:
    """What is written about the bundle: "name", "reader", "network" (where it comes from) and "data_section"."""
    method, dataset = wiring.parts(bundle)
    network = _network(method)
    shown = {"method": method if network is None else network.__name__, "dataset": dataset}
    for key, folder, part in (("method", of_method, 0), ("dataset", of_data, 2)):
        if folder is not None:
            shown[key] = str(wiring.read_config(folder / "configs" / "metadata.json")["name"]).partition(" on ")[part]
    reader = dataset if dataset in READERS else "datalist"
    if of_data is None:
        section = Template((TEMPLATE / "data_section.md").read_text(encoding="utf-8")).substitute(reader=reader)
    else:
        readme = (of_data / "docs" / "README.md").read_text(encoding="utf-8")
        section = "## Data and licence" + readme.partition("## Data and licence")[2].partition("\n## ")[0].rstrip()
        section += f"\n\n{TODO}: this and `data_license.txt` come from {of_data.name}; correct what is not so here."
    source = "a start that nobody has trained with" if of_method is None else f"those of {of_method.name}"
    name = f"{shown['method']} on {shown['dataset']}"
    return {"name": name, "reader": reader, "network": source, "data_section": section.strip()}


def _start_data(mine: dict[str, Any], file: str, reader: str) -> None:
    """Turn the plainest data set's part into that of a new one."""
    for section in ("train", "evaluate", "infer"):
        mine.get(section, {}).pop("phantoms", None)
    if file == "metadata.json":
        mine |= {
            "data_source": f"{TODO}: where the data come from",
            "data_license": f"{TODO}: terms of the data; what they leave for weights",
            "intended_use": "Research only; not for clinical use",
        }
        mine["network_data_format"]["inputs"]["image"]["modality"] = f"{TODO}: MR or CT"
    elif "reader" in mine:
        mine["reader"] = reader


def _put_method(mine: dict[str, Any], file: str, method: str, of_method: Path | None, wired: dict[str, Any]) -> None:
    """Replace network and recipe by those of the method."""
    paths = wiring.OWN[file].get(wiring.METHOD, ())
    if of_method is None:
        # The schedule stays that of the base, the inferer is the pattern's.
        schedule = {path: mine[path] for path in paths if path in mine and file == "train.json"}
        schedule.pop("supervised", None)
        # So is the optimisation on a pair, that of any network.
        said = _said(wired, [path for path in paths if "::" in path or path in wiring.OPTIMISED])
        said |= schedule | _start(method, file)
    else:
        config = of_method / "configs" / file
        # A method without a submission of its own has the same network in inference.
        said = _said(wiring.read_config(config if config.is_file() else config.with_name("inference.json")), paths)
    for path in paths:
        holder, key = _holder(mine, path), path.rpartition("::")[2]
        holder.pop(key, None)
        if path in said:
            holder[key] = said[path]


def _said(content: dict[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """What a configuration has at some paths."""
    places = {path: (_holder(content, path), path.rpartition("::")[2]) for path in paths}
    return {path: holder[key] for path, (holder, key) in places.items() if key in holder}


def _start(method: str, file: str) -> dict[str, Any]:
    """Network and recipe to begin with."""
    network = _network(method)
    parameters = inspect.signature(network).parameters
    dims = {"spatial_dims": 3} if "spatial_dims" in parameters else {}
    said: dict[str, Any] = {"network_def": {"_target_": f"common.networks.{network.__name__}", **dims}}
    if file == "train.json":
        said |= wiring.read_config(TEMPLATE / "recipe.json")
    return said


def _holder(content: dict[str, Any], path: str) -> dict[str, Any]:
    """The object that has the last key of a path."""
    for key in path.split("::")[:-1]:
        content = content[key]
    return content


def _put_texts(mine: dict[str, Any], file: str, texts: dict[str, str]) -> None:
    """Replace what a bundle says of itself."""
    if file == "train.json":
        option = "e.g. --max_epochs 10 --batch_size 2"
        mine["_desc_"] = f"Train {texts['name']}. Any value below can be set on the command line, {option}"
    if file == "metadata.json":
        # Weights stay with the bundle that they were trained for.
        mine.pop("weights_license", None)
        mine |= {
            "version": "0.1.0",
            "changelog": {"0.1.0": "first release"},
            "name": texts["name"],
            "description": f"{TODO}: what is registered with which network. Output: displacement in voxels of the "
            "fixed grid, warped(x) = moving(x + pred(x)).",
            "eval_metrics": {},
            "references": [f"{TODO}: papers of method and data"],
        }


def unfinished_files(bundle: Path) -> list[Path]:
    """Files of a bundle that still have something TODO."""
    files = [*sorted((bundle / "configs").iterdir()), *sorted((bundle / "docs").iterdir())]
    texts = {path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".json", ".md", ".txt")}
    return [path for path, text in texts.items() if TODO in text]


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Make the folder of a new bundle, wired as all the others; what is left to write is marked TODO.",
        epilog="Example: python scripts/new_bundle.py eoir hammers makes bundles/eoir_hammers",
    )
    options.add_argument("method", help="method of a bundle, or a class of common.networks in small letters")
    options.add_argument("dataset", help="data set of a bundle, or a new name; a reader of this name is used")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    bundle = make_bundle(ROOT, arguments.method, arguments.dataset)
    print(f"{bundle.relative_to(ROOT)} is made. To be written, look for {TODO}:")
    for path in unfinished_files(bundle):
        print(f"  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    run_tool(main)

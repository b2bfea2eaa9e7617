# SPDX-License-Identifier: Apache-2.0
"""Keep what all bundles share the same: compare their configurations with one bundle's, or copy from it.

A workflow file is plain JSON that stands alone, so most of it, the wiring, is the same in every bundle. One bundle is
the pattern. To change the wiring, change the pattern and run ``python scripts/wiring.py --write``; without the option
the script names every bundle, file and path that differs. What a bundle says of its own stands in ``OWN``, where
a method or data set that needs a new place adds its path; what one bundle needs against the rule, in ``EXCEPTIONS``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import common
from common.checks import InputError
from common.cli import run_tool
from common.io.files import write_bytes
from scripts.json_style import style

PATTERN = "eoir_oasis"
COPIED = ("LICENSE", "configs/logging.conf")
OPTIONAL = ("submission.json",)
TRAINING = ("train.json", "multi_gpu_train.json")
UNTRAINED = ("instance_any",)
"""Bundles without a network that is trained: they have none of these files."""
METHOD, DATA, TEXT = "method", "data", "text"
_NETWORK = ("network_def", "supervised")
_SCHEDULE = ("max_epochs", "pairs_per_epoch", "batch_size", "learning_rate", "val_interval", "lr_scheduler")
_SUBJECTS = ("reader", "preprocessing")
_WINDOW = "window"
_LABELS = ("label_groups", "grouping", "counted")
_GRID = ("spacing", "spatial_size", "zoom", "orientation")
_SAMPLER = ("train::dataloader::sampler::strategy", "train::dataloader::sampler::flip_axes")
_WRITER = ("handlers::RegistrationWriter::labels", "handlers::RegistrationWriter::lookup")
_LOOP = ("io_steps", "io_learning_rate", "levels", "similarity", "smoothness", "symmetric")
_GUIDED = ("label_weight", "landmark_weight")
OPTIMISED = ("loss", *_LOOP, *_GUIDED, "inferer::unknown")
"""Optimisation on the pair itself: of the field, or of what is unknown to a method that has another way."""
_INPUT = "network_data_format::inputs::image"
OWN: dict[str, dict[str, tuple[str, ...]]] = {
    "train.json": {
        METHOD: (*_NETWORK, *_SCHEDULE, "train::dataloader::sampler::both_ways", "num_classes", "loss", "optimizer"),
        DATA: (
            *(*_SUBJECTS, *_LABELS, "classes", *_GRID, *_SAMPLER, "num_workers", "cache_rate", "train::phantoms"),
            "validate::preprocessing",
        ),
        TEXT: ("_desc_",),
    },
    "evaluate.json": {
        METHOD: (*_NETWORK, *(name for name in OPTIMISED if name not in _GUIDED)),
        DATA: (*_SUBJECTS, *_LABELS, "found", _WINDOW, *_GRID, "section", "hd95", "evaluate::phantoms"),
    },
    "inference.json": {
        METHOD: (*_NETWORK, *OPTIMISED, *(f"folder::settings::{name}" for name in (*_LOOP, *_GUIDED))),
        DATA: (
            *(*_SUBJECTS, "label_groups", "label_numbering", "grouping", "spacing", "intensity"),
            *(_WINDOW, f"folder::settings::{_WINDOW}", "section", *_WRITER, "infer::phantoms", "dataset::masked"),
            *(at + name for name in ("spatial_size", "orientation") for at in ("", "folder::settings::", "dataset::")),
        ),
    },
    "submission.json": {
        METHOD: _NETWORK,
        DATA: (*_SUBJECTS, "_desc_", "section", "image_shape", "fields_dir", "folder::challenge"),
    },
    "multi_gpu_train.json": {},
    "metadata.json": {
        DATA: (
            "data_source",
            "data_license",
            "weights_license",
            "intended_use",
            "training_spatial_shape",
            f"{_INPUT}::modality",
            f"{_INPUT}::value_range",
        ),
        TEXT: ("version", "changelog", "name", "description", "eval_metrics", "references"),
    },
}
"""Per file, what a bundle says of its own, with all that is below: as its method, as its data set, or alone.

``::`` stands between the keys of a path; an entry of a list of components is named by its class. Handlers of its own
a bundle may always add.
"""
EXCEPTIONS = (
    *(
        ("instance_any", file, path, "there are no weights")
        for file, paths in (
            ("evaluate.json", ("ckpt_path", "network", "history", "handlers::EvaluationWriter::history")),
            ("inference.json", ("ckpt_path", "network", "folder::settings::ckpt_path")),
        )
        for path in paths
    ),
    (
        *("*_lumir", "train.json", "validate::dataset::cache_rate"),
        "the 3384 scans of training are read anew each time, the few of validation stay in memory",
    ),
    *(
        ("synthmorph_*", "train.json", path, "the images of training are made of label maps, step by step")
        for path in (
            *("num_shapes", "shapes", "images", "train::preprocessing", "train::random_shapes", "train::label_maps"),
            *(f"train::listing::{name}" for name in ("_target_", "section", "shapes")),
            "train::trainer::prepare_batch::synthesis",
        )
    ),
    *(
        ("*_shapes2d", "metadata.json", f"network_data_format::{path}", "images of two dimensions")
        for path in (
            "inputs::image::spatial_shape",
            *(f"outputs::pred::{name}" for name in ("num_channels", "spatial_shape", "channel_def::2")),
        )
    ),
)
"""(bundles, file, path, reason) of what differs though it is wiring."""


def bundles(root: Path) -> list[Path]:
    """Folders of all bundles, in alphabetical order."""
    return sorted(path.parent.parent for path in (root / "bundles").glob("*/configs/metadata.json"))


def parts(bundle: str) -> tuple[str, str]:
    """Method and data set of a bundle's name, "dp_conv_c_oasis": only the method has underscores of its own."""
    method, _, dataset = bundle.rpartition("_")
    return method, dataset


def differences(root: Path) -> list[str]:
    """One line for each path of each file that is not as the pattern has it; empty where all is well.

    Args:
        root: folder of the repository.

    Raises:
        InputError: a file that every bundle needs is missing, or is no JSON object.
    """
    lines = []
    for bundle in bundles(root):
        for path, wanted in wanted_files(root, bundle).items():
            name = path.relative_to(root).as_posix()
            found = path.read_text(encoding="utf-8") if path.is_file() else None
            if found is None:
                lines.append(f"{name} is missing")
            elif found != wanted and path.suffix == ".json":
                unlike = list(_unlike(json.loads(wanted), json.loads(found)))
                lines += [f"{name}: {line}" for line in unlike or ["the order of keys or the line breaks differ"]]
            elif found != wanted:
                lines.append(f"{name} differs")
    return lines


def write(root: Path) -> list[Path]:
    """Copy the wiring from the pattern into all bundles; returns the files that changed.

    Args:
        root: folder of the repository.

    Raises:
        InputError: as :func:`differences`; nothing is written then.
    """
    wanted = {path: text for bundle in bundles(root) for path, text in wanted_files(root, bundle).items()}
    changed = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in changed:
        write_bytes(path, wanted[path].encode())
    return changed


def wanted_files(root: Path, bundle: Path) -> dict[Path, str]:
    """Every file of a bundle that holds wiring, with the text that it should have."""
    pattern = root / "bundles" / PATTERN
    files = {bundle / name: (pattern / name).read_text(encoding="utf-8") for name in COPIED}
    for name, own in OWN.items():
        path = bundle / "configs" / name
        if name in TRAINING and bundle.name in UNTRAINED:
            continue
        if path.is_file() or name not in OPTIONAL:
            mine = read_config(path) if own or path.is_file() else {}
            files[path] = style(merge(wiring(root, name), mine, own_paths(bundle.name, name)))
    return files


def wiring(root: Path, file: str) -> dict[str, Any]:
    """A configuration of the pattern; the metadata with the versions that are pinned now."""
    content = read_config(root / "bundles" / PATTERN / "configs" / file)
    if file != "metadata.json":
        return content
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.strip().split("==") for line in lines if re.match(r"[\w-]+==", line))
    versions: dict[str, Any] = {f"{name}_version": pins.pop(name) for name in ("monai", "numpy")}
    versions |= {"pytorch_version": pins.pop("torch"), "common_version": common.__version__}
    return {**content, **versions, "required_packages_version": pins}


def own_paths(bundle: str, file: str) -> set[str]:
    """What a bundle says of its own in a file, exceptions included."""
    own = {path for paths in OWN[file].values() for path in paths}
    return own | {path for names, where, path, _ in EXCEPTIONS if where == file and fnmatch(bundle, names)}


def read_config(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        InputError: the file is missing, or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; take it from a bundle of the same method or data set.") from None
    except ValueError as error:
        raise InputError(f"{path} is no JSON ({error}); correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, but a configuration is an object.")
    return content


def merge(pattern: Any, mine: Any, own: set[str], path: str = "") -> Any:
    """The pattern, with what a bundle says of its own put in.

    Args:
        pattern: item of the pattern.
        mine: the same item of the bundle, or None.
        own: paths that are the bundle's; its keys that the pattern lacks keep their place behind the same key.
        path: of the item.
    """
    wired, given = entries(pattern), entries(mine) or {}
    if wired is None:
        return pattern
    merged: dict[str, Any] = {}
    for key, value in wired.items():
        if f"{path}{key}" not in own:
            merged[key] = merge(value, given.get(key), own, f"{path}{key}::")
        elif key in given:
            merged[key] = given[key]
    behind = None
    for key, value in given.items():
        if key not in merged and (f"{path}{key}" in own or (isinstance(mine, list) and path.endswith("handlers::"))):
            keys = list(merged)
            keys.insert(0 if behind is None else keys.index(behind) + 1, key)
            merged = {name: value if name == key else merged[name] for name in keys}
        behind = key if key in merged else behind
    return merged if isinstance(pattern, dict) else list(merged.values())


def entries(item: Any) -> dict[str, Any] | None:
    """What an object holds by key, and a list of components by class; None for all else."""
    if isinstance(item, list) and item and all(isinstance(entry, dict) and "_target_" in entry for entry in item):
        named = {entry["_target_"].rpartition(".")[2]: entry for entry in item}
        return named if len(named) == len(item) else None
    return item if isinstance(item, dict) else None


def _unlike(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    """A sentence for each path of two items that differs."""
    these, those = entries(wanted), entries(found)
    if these is None or those is None:
        if json.dumps(wanted) != json.dumps(found):
            yield f"{path.removesuffix('::')} is {json.dumps(found)}, in {PATTERN} {json.dumps(wanted)}"
        return
    for key in {**these, **those}:
        if key not in those:
            yield f"{path}{key} is missing"
        elif key not in these:
            yield f"{path}{key} is not in {PATTERN}, and not among what a bundle may say of its own"
        else:
            yield from _unlike(these[key], those[key], f"{path}{key}::")


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description=f"Compare what all bundles share with {PATTERN}, the pattern: configurations, versions, licence.",
        epilog=f"To change all bundles: change bundles/{PATTERN}, then python scripts/wiring.py --write",
    )
    options.add_argument("--write", action="store_true", help="copy from the pattern where something differs")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exits with 1 where something differs."""
    if parser().parse_args(argv).write:
        for path in write(ROOT):
            print(f"{path.relative_to(ROOT)} written")
        return
    lines = differences(ROOT)
    print("\n".join(lines) or f"All {len(bundles(ROOT))} bundles are wired alike.")
    if lines:
        sys.exit(1)


if __name__ == "__main__":
    run_tool(main)

# SPDX-License-Identifier: Apache-2.0
"""Put a trained network into the box: ``models/model.pt`` of its bundle, its figures into ``configs/metadata.json``.

Example: ``python scripts/ship.py eoir_brains run/model.pt --trained run/train --evaluated run/out`` with the folders
that ``train`` and ``evaluate`` wrote. Protocol, licence and card are written by hand. A file that is called
``model_labels.pt`` stays so, and its figures end in ``_labels``.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from common.cli import add_switch, run_tool
from common.io.checkpoints import load_checkpoint, load_weights
from common.io.files import write_bytes
from scripts.json_style import style
from scripts.package import find_bundle

NAMES = ("model.pt", "model_labels.pt")
LARGEST = 6_000_000
"""Bytes of a file of weights: a clone brings every version that there has ever been."""
TYPES = (torch.float32, torch.float16)
_MEASURED = (("hd95", "hd95", 3), ("fold_percent", "fold_fraction", 4), ("cpu_seconds", "cpu_seconds", 2))
"""Name in the metadata, in the summary where that has it, and digits."""


def check_weights(bundle: Path, path: Path) -> None:
    """Refuse weights that are not small, plain, finite, or do not fit the network that the bundle registers with.

    Args:
        bundle: folder of the bundle.
        path: file of the weights.

    Raises:
        InputError: naming the file and what is wrong.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > LARGEST:
        raise InputError(
            f"{path} has {size / 1e6:.1f} MB, and {LARGEST / 1e6:.0f} are the most that a clone should carry: train a "
            "narrower network, or halve the weights (float16)."
        )
    config = ConfigParser.load_config_file(str(bundle / "configs" / "inference.json"))
    network = ConfigParser(config).get_parsed_content("network_def")
    load_weights(network, path)
    state, own = load_checkpoint(path), network.state_dict()
    if set(state) != set(own):
        raise InputError(f"{path} is the checkpoint of a training: give the weights alone, such as models/model.pt.")
    # Counters of steps stay what they are.
    allowed = {name: TYPES if value.is_floating_point() else (value.dtype,) for name, value in own.items()}
    others = sorted({str(value.dtype) for name, value in state.items() if value.dtype not in allowed[name]})
    if others:
        raise InputError(f"{path} holds {', '.join(others)}: weights in the box are float32 or float16.")


def figures(trained: Path | None, evaluated: Path | None, optimised: Path | None) -> dict[str, Any]:
    """What is documented of a network, as far as folders of runs say it.

    Args:
        trained: that of the training, for seed, steps and hours.
        evaluated: that of the evaluation without steps on the pair; its first pair is documented by itself.
        optimised: that of the evaluation with 50 steps.

    Raises:
        InputError: a folder has no such files.
    """
    found: dict[str, Any] = {}
    if evaluated is not None:
        metrics = json.loads(_text(evaluated / "summary.json"))["metrics"]
        first = next(csv.DictReader(_text(evaluated / "cases.csv").splitlines()))
        found["dice"] = round(metrics["dice"]["mean"], 4)
        found["dice_first_pair"] = round(float(first["dice"]), 4)
        found["dice_before"] = round(metrics["dice"]["before"], 4)
        for name, source, digits in _MEASURED:
            if source in metrics:
                found[name] = round(float(metrics[source]["mean"]), digits)
    if optimised is not None:
        found["dice_io50"] = round(json.loads(_text(optimised / "summary.json"))["metrics"]["dice"]["mean"], 4)
    if trained is not None:
        checkpoint = load_checkpoint(trained / "checkpoint.pt")
        found["seed"] = checkpoint["settings"]["seed"]
        found["steps"] = checkpoint["iteration"]
        found["train_cpu_hours"] = round(checkpoint["cpu_seconds"] / 3600, 2)
    return found


def ship(bundle: Path, weights: Path, found: dict[str, Any], terms: str | None, overwrite: bool) -> Path:
    """Write weights and figures into a bundle.

    Args:
        bundle: its folder.
        weights: called as one of ``NAMES``.
        found: see :func:`figures`.
        terms: under which the weights are, in short; None for those that the metadata say.
        overwrite: whether weights that are there may be replaced.

    Returns:
        The file in ``models``.

    Raises:
        InputError: as :func:`check_weights`, another name, no terms, or weights that are there.
    """
    if weights.name not in NAMES:
        raise InputError(f"{weights} is not called {' or '.join(NAMES)}: name the file as it will be in the box.")
    check_weights(bundle, weights)
    target, metadata = bundle / "models" / weights.name, bundle / "configs" / "metadata.json"
    if target.exists() and not overwrite and target.read_bytes() != weights.read_bytes():
        raise InputError(f"{target} exists: replace it with --overwrite true.")
    content = json.loads(metadata.read_text(encoding="utf-8"))
    if terms is None and "weights_license" not in content:
        raise InputError(f"{metadata} does not say under which terms the weights are: add --license TEXT, such as CC0.")
    write_bytes(target, weights.read_bytes())
    suffix = weights.stem.removeprefix("model")
    content["eval_metrics"] |= {
        name if name == "dice_before" else f"{name}{suffix}": value for name, value in found.items()
    }
    write_bytes(metadata, style(content if terms is None else _with_terms(content, terms)).encode())
    return target


def _with_terms(metadata: dict[str, Any], terms: str) -> dict[str, Any]:
    """The metadata with the licence of the weights behind that of the data."""
    kept = {name: value for name, value in metadata.items() if name != "weights_license"}
    names = [*kept]
    at = names.index("data_license") + 1
    return {name: {**kept, "weights_license": terms}[name] for name in [*names[:at], "weights_license", *names[at:]]}


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"There is no {path}: give a folder that evaluate wrote.")
    return path.read_text(encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Put trained weights into models of a bundle, and their figures into its metadata.",
        epilog="Example: python scripts/ship.py eoir_shapes3d run/model.pt --evaluated run/evaluate",
    )
    options.add_argument("bundle", help="name of a folder in bundles")
    options.add_argument("weights", type=Path, help=f"called {' or '.join(NAMES)}")
    options.add_argument("--trained", type=Path, help="output folder of the training")
    options.add_argument("--evaluated", type=Path, help="output folder of the evaluation")
    options.add_argument("--optimised", type=Path, help="output folder of the evaluation with --io_steps 50")
    options.add_argument("--license", metavar="TEXT", help="of the weights, in short; default: what the metadata say")
    add_switch(options, "overwrite", "replace weights that are there")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    found = figures(arguments.trained, arguments.evaluated, arguments.optimised)
    target = ship(find_bundle(arguments.bundle), arguments.weights, found, arguments.license, arguments.overwrite)
    said = ", ".join(f"{name} {value}" for name, value in found.items())
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB; {said or 'no figures'}.")


if __name__ == "__main__":
    run_tool(main)

# SPDX-License-Identifier: Apache-2.0
"""What turned, shifted, noisy, cut and otherwise perturbed scans do to a network, to optimisation, and to Greedy.

Example: ``python scripts/sensitivity.py dp_conv_c_oasis --dataset_dir BRAINS --label_groups label_groups.json --output
sensitivity``.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import torch
from tqdm.auto import tqdm

from common.api import Bundle, Deformation, Image, load_bundle
from common.checks import InputError
from common.cli import add_switch, run_tool, whole
from common.data import read_section
from common.data.label_groups import LabelGroups, read_label_groups
from common.data.perturbations import PERTURBATIONS
from common.data.readers import READERS, SECTIONS
from common.engine.command_line import values_of
from common.evaluation.sensitivity import Row, around_table, refresh_page, sensitivity_table
from common.io.run_record import RunRecord
from common.io.tables import write_csv
from common.io.transforms import Field, Transform
from common.metrics.overlap import dice_per_label
from scripts import baseline_pair
from scripts.baselines import check_installed
from scripts.classical import METHODS as BASELINES
from scripts.lesion import load

METHODS = {"before": "before", "network": "network", "optimised": "network + {steps} steps", "greedy": "Greedy"}
"""What the table calls them."""
AFFINE = (False, True)
LINES = [(name, affine) for name, one in PERTURBATIONS.items() for affine in AFFINE if one.moves or not affine]
"""Of the table. An affine alignment comes first, too, where the scans do not lie in one place."""
Register = Callable[[Image, Image, bool], tuple[Deformation, float]]
"""Moving scan, fixed scan, and whether an affine alignment comes first; to the transform and its CPU seconds."""


class Pair(NamedTuple):
    """Two scans with their labels, and the seed of what is done to the moving one."""

    moving: Image
    moving_label: Image
    fixed: Image
    fixed_label: Image
    seed: int


class Method(NamedTuple):
    """One that registers, and what its figures depend on."""

    register: Register
    settings: dict[str, Any]


def by_bundles(bundles: dict[bool, Bundle]) -> Register:
    """Registers with a bundle that does without an affine alignment, or one that begins with it."""

    def register(moving: Image, fixed: Image, affine: bool) -> tuple[Deformation, float]:
        began = time.process_time()
        transform = bundles[affine].register(moving, fixed).transform
        return transform, time.process_time() - began

    return register


def loaded(scan: Image) -> baseline_pair.LoadedScan:
    """A scan as the baselines take it."""
    return baseline_pair.LoadedScan(
        {"id": scan.name}, torch.from_numpy(scan.array).float(), torch.from_numpy(scan.affine)
    )


def by_greedy(align: Register, settings: dict[str, Any], python: str) -> Register:
    """Registers with Greedy what ``align`` has brought onto the fixed scan's grid."""

    def register(moving: Image, fixed: Image, affine: bool) -> tuple[Deformation, float]:
        start, seconds = align(moving, fixed, affine)
        ddf, _, cost = baseline_pair.register(loaded(start.apply(moving)), loaded(fixed), settings, python)
        whole_way = Transform((Field(start.fixed, ddf[None]), *start.transform.stages))
        return Deformation(whole_way, start.fixed, start.moving), seconds + cost["cpu_seconds"]

    return register


def methods_of(given: argparse.Namespace) -> dict[str, Method]:
    """The methods that are asked for, by name.

    Raises:
        InputError: for a bundle without weights, an option that it has not, and without Greedy.
    """
    # Of the bundle without a network: no step is made.
    still = by_bundles({affine: load_bundle("instance_any", affine=affine, io_steps=0) for affine in AFFINE})
    methods = {"before": Method(still, {})}
    options = values_of(shlex.split(given.options))
    if own := options.keys() & {"affine", "io_steps"}:
        raise InputError(f"--{min(own)} is not for --options: the study has lines without and with both.")
    for name, steps in {"network": 0, "optimised": given.io_steps}.items():
        if name in given.methods:
            made = {a: load_bundle(given.bundle, **{**options, "affine": a, "io_steps": steps}) for a in AFFINE}
            folder = made[False].folder
            settings = {
                "bundle": given.bundle,
                "weights": str(options.get("ckpt_path", folder / "models" / "model.pt")),
                "configuration": str(folder / "configs" / "inference.json"),
                "options": {option: value for option, value in options.items() if option != "ckpt_path"},
                "io_steps": steps,
            }
            methods[name] = Method(by_bundles(made), settings)
    if "greedy" in given.methods:
        version = check_installed("greedy", given.python)
        asked = {"method": "greedy", "options": dict(BASELINES["greedy"].options), "threads": 1}
        methods["greedy"] = Method(by_greedy(still, asked, given.python), {**asked, "version": version})
    return methods


def pairs_of(given: argparse.Namespace, groups: LabelGroups) -> list[Pair]:
    """The pairs that the options name; the seed of a pair is the same whatever pairs are left out.

    Raises:
        InputError: when a scan cannot be used or has no labels.
    """
    listing = read_section(given.dataset_dir, given.reader, given.section)
    chosen = list(enumerate(listing.every_pair()))[:: given.every]
    return [
        Pair(*_read(listing.subjects[moving], groups), *_read(listing.subjects[fixed], groups), given.seed + number)
        for number, (moving, fixed) in chosen
    ]


def _read(subject: dict[str, Any], groups: LabelGroups) -> tuple[Image, Image]:
    """A subject's scan and its label map in groups."""
    if "label" not in subject:
        raise InputError(f"{subject['image']} has no label map, but the Dice is measured; take labelled scans.")
    read = load(subject, groups)
    scan, label = (Image(read[key][0].numpy(), read[key].affine.numpy(), subject["id"]) for key in ("image", "label"))
    return scan, label


def measure(pair: Pair, perturbation: str, name: str, method: Method, affine: bool, labels: Sequence[int]) -> Row:
    """Register one pair by one method after one perturbation of the moving scan.

    The labels are those of the scan as it was, in its new place: they say where the field leads, also where the scan
    was cut, and lose nothing by larger voxels.
    """
    change = PERTURBATIONS[perturbation]
    transform, seconds = method.register(change.apply(pair.moving, pair.seed), pair.fixed, affine)
    warped = transform.apply(change.of_label(pair.moving_label, pair.seed), mode="nearest")
    found, true = (torch.from_numpy(label.array)[None, None] for label in (warped, pair.fixed_label))
    return {
        **_ids(pair),
        "perturbation": perturbation,
        "method": name,
        "affine": affine,
        "dice": dice_per_label(found, true, labels).nanmean().item(),
        "cpu_seconds": seconds,
    }


def _ids(pair: Pair) -> dict[str, str]:
    return {"moving_id": pair.moving.name, "fixed_id": pair.fixed.name}


def run(given: argparse.Namespace) -> list[Row]:
    """Measure what the folder does not hold yet.

    Returns:
        The rows of the pairs and methods that are asked for.

    Raises:
        InputError: when the folder holds figures that other settings have made and ``overwrite`` is not set.
    """
    groups = read_label_groups(given.label_groups)
    methods, pairs = methods_of(given), pairs_of(given, groups)
    data = {"dataset_dir": str(given.dataset_dir.resolve()), "label_groups": given.label_groups, "seed": given.seed}
    records = {
        name: RunRecord(given.output / f"{name}.json", given.output, "figures", {**data, **method.settings}, "--output")
        for name, method in methods.items()
    }
    kept = {name: _kept(record, given.overwrite) for name, record in records.items()}
    jobs = list(itertools.product(pairs, LINES, methods))
    rows = []
    for pair, (perturbation, affine), name in tqdm(jobs, desc="sensitivity", unit="registration"):
        wanted = {**_ids(pair), "perturbation": perturbation, "affine": affine}
        row = next((row for row in kept[name] if wanted.items() <= row.items()), None)
        if row is None:
            row = measure(pair, perturbation, name, methods[name], affine, groups.evaluated or [])
            kept[name].append(row)
            records[name].write(rows=kept[name])
        rows.append(row)
    return rows


def _kept(record: RunRecord, overwrite: bool) -> list[Row]:
    """Rows of an earlier run; none where other settings have made them and they may be replaced."""
    try:
        return list(*record.read("rows")) if record.path.is_file() else []
    except InputError:
        if not overwrite:
            raise
        return []


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Register pairs whose moving scan is turned, shifted, scaled in its intensities, biased, noisy, "
        "cut or of other voxels, by a network, the same with optimisation on the pair, and Greedy; where it lies "
        "elsewhere also with an affine alignment before it. Dice as a table.",
        epilog="The same command goes on after an interruption, and measures what is new: figures of Greedy stay where "
        "only the network is another one (--overwrite true).",
    )
    add = options.add_argument
    add("bundle", help="name or folder of the bundle whose network registers")
    add("--dataset_dir", type=Path, required=True, help="folder of a data set of labelled scans on one grid")
    add("--reader", default="datalist", choices=tuple(READERS), help="default: %(default)s")
    add("--section", default="validation", choices=SECTIONS, help="default: %(default)s")
    add("--label_groups", type=Path, required=True, help="JSON of the groups of labels that count")
    add("--every", type=whole(1), default=1, help="take one pair of so many; default: %(default)s")
    add("--options", default="", help='of the bundle\'s inference.json, such as "--ckpt_path FILE --spacing [2,2,2]"')
    add("--io_steps", type=whole(1), default=50, help="of the optimisation on the pair; default: %(default)s")
    named = [name for name in METHODS if name != "before"]
    add("--methods", nargs="+", choices=named, default=named, help="default: all")
    add("--python", default=sys.executable, help="interpreter that has Greedy; default: this one")
    add("--seed", type=whole(0), default=0, help="of axes, directions, noise and bias field; default: %(default)s")
    add("--output", type=Path, required=True, help="folder of the figures, with sensitivity.csv and sensitivity.md")
    add("--page", type=Path, help="page in Markdown whose table is replaced, too, such as docs/sensitivity.md")
    add_switch(options, "overwrite", "replace figures that other weights or settings have made")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    if given.page is not None:
        # Half an hour later would be too late to hear of it.
        around_table(given.page)
    rows = run(given)
    titles = {
        name: METHODS[name].format(steps=given.io_steps) for name in METHODS if name in ("before", *given.methods)
    }
    table = sensitivity_table(rows, titles)
    write_csv(given.output / "sensitivity.csv", rows)
    (given.output / "sensitivity.md").write_text(table + "\n", encoding="utf-8")
    if given.page is not None:
        refresh_page(given.page, table)
    print(table)


if __name__ == "__main__":
    run_tool(main)

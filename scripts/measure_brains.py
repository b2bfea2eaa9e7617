# SPDX-License-Identifier: Apache-2.0
"""Measure every network of brains that ships, and the classical tools, on the same pairs; write the leaderboard.

Example: ``python scripts/measure_brains.py --dataset_dir BRAINS/aligned_2mm --label_groups BRAINS/label_groups.json
--python ENV/bin/python --output runs``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from common.checks import InputError
from common.cli import add_switch, run_tool, whole
from common.evaluation.processes import run_logged
from common.io.run_record import RunRecord
from scripts import leaderboard
from scripts.baselines import check_installed
from scripts.classical import METHODS

TOOLS = ("greedy", "syn", "demons", "convexadam")
REFERENCE = "greedy"
STEPS = 50
RECORD = "measured.json"
FIGURES = "dice hd95 ndv fold_fraction sdlogj sdlogj_l2r cpu_seconds peak_memory_gb parameters".split()
TITLE = "Networks that ship, and classical tools, on brains"
NOTES = (
    "All pairs of a data set's validation section, in both directions; in the table that is released, the 12 ordered "
    "pairs of four people of OASIS whom no training saw: T1, skull-stripped, aligned affinely, 2 mm (80 x 112 x 96 "
    "voxels), 31 groups of labels. Pairs that share people are not independent: ± is spread, not an error of the mean, "
    "and p is smaller than it would be with as many strangers.",
    f"A network is called as its bundle; labels means weights that were trained with labels, too, and {STEPS} steps "
    "those of optimisation on the pair itself, from the network's field, of instance_any from nothing. The tools run "
    "with the options in scripts/classical.py, which are published or untuned. HD95 is in voxels; SDlogJ (L2R) is that "
    "of Learn2Reg's code.",
    "CPU seconds are those of one thread on one pair, of network and optimisation or of the tool. Memory is the most "
    "that the process had, libraries included: of networks with the evaluation and all scans, of tools the mean of the "
    "pairs.",
    "Scans by the OASIS project (OASIS-1), labels provided by Neuromorphometrics, Inc. (neuromorphometrics.com) under "
    "academic subscription, both CC BY-NC. Made by scripts/measure_brains.py, see evaluation.md.",
)
EPILOG = """\
OUTPUT/NAME gets the evaluation of each method with its log, OUTPUT/fields/TOOL the fields of a tool, OUTPUT or --board
leaderboard.md, .csv and .html. The same command goes on where an interrupted one stopped, and repeats nothing; what was
measured with other weights, configurations or data is refused, or measured again with --overwrite true.
"""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: in the table, and of its folder.
        settings: what its figures depend on; paths of files stand for their content.
        commands: words behind the interpreter, one list after the other, for the folders of results and of fields.
    """

    name: str
    settings: dict[str, Any]
    commands: Callable[[Path, Path], list[list[str]]]


def methods(given: argparse.Namespace) -> list[Method]:
    """Networks alone, networks with optimisation, the field alone, tools."""
    bundles = [*sorted(ROOT.glob("bundles/*_brains")), ROOT / "bundles" / "synthmorph_shapes3d"]
    weights = [path for bundle in bundles for path in sorted(bundle.glob("models/model*.pt"))]
    found = [bundle_method(path.parents[1], path, steps, given) for steps in (0, STEPS) for path in weights]
    found.append(bundle_method(ROOT / "bundles" / "instance_any", None, STEPS, given))
    return [*found, *(tool_method(name, given) for name in given.tools)]


def bundle_method(bundle: Path, weights: Path | None, steps: int, given: argparse.Namespace) -> Method:
    """The evaluation of a bundle's weights, or of a bundle that needs none."""
    config = bundle / "configs" / "evaluate.json"
    trained = [] if weights is None else [weights.stem.removeprefix("model").strip("_")]
    name = ", ".join(filter(None, [bundle.name, *trained, f"{steps} steps" if steps else ""]))
    words = ["--dataset_dir", str(given.dataset_dir), "--label_groups", str(given.label_groups)]
    words += ["--reader", "datalist", "--section", "validation", "--hd95", "voxels", "--device", "cpu"]
    words += ["--io_steps", str(steps)] + ([] if weights is None else ["--ckpt_path", str(weights)])
    start = ["-W", "ignore", "-m", "monai.bundle", "run", "evaluate", "--config_file", str(config)]
    start += ["--bundle_root", str(bundle), *words, "--output_dir"]
    settings = {"steps": steps, "weights": weights, "configuration": config}
    return Method(name, {**settings, **_data(given)}, lambda results, _: [[*start, str(results)]])


def tool_method(name: str, given: argparse.Namespace) -> Method:
    """Fields of a classical tool, and their evaluation."""
    scripts, data = ROOT / "scripts", given.dataset_dir

    def commands(results: Path, fields: Path) -> list[list[str]]:
        register = [str(scripts / "baselines.py"), name, "--python", given.python, "--dataset_dir", str(data)]
        register += ["--section", "validation", "--threads", "1", "--output", str(fields)]
        score = [str(scripts / "evaluate.py"), "--fields", str(fields), "--pairs", str(fields / "pairs.csv")]
        score += ["--images", str(data / "imagesTr"), "--labels", str(data / "labelsTr"), "--workers", "1"]
        return [register, [*score, "--label_groups", str(given.label_groups), "--output", str(results)]]

    return Method(name, {"options": dict(METHODS[name].options), **_data(given)}, commands)


def _data(given: argparse.Namespace) -> dict[str, Any]:
    return {"pairs": given.dataset_dir / "dataset.json", "labels": given.label_groups}


def is_measured(method: Method, output: Path, overwrite: bool) -> bool:
    """Whether a folder holds the figures of a method; with ``overwrite`` it is emptied of those of other settings.

    Raises:
        InputError: it holds something else, or without ``overwrite`` figures of other settings.
    """
    place = folder_of(method, output)
    record = record_of(method, output)
    if not record.path.is_file():
        if place.exists() and any(place.iterdir()):
            raise InputError(f"{place} holds files, and no {RECORD} says where from: choose another --output.")
        return False
    try:
        return bool(record.read("finished")[0])
    except InputError:
        if not overwrite:
            raise
    shutil.rmtree(place)
    shutil.rmtree(fields_of(method, output), ignore_errors=True)
    return False


def measure(method: Method, output: Path) -> None:
    """Run the commands of a method that is not measured yet, on one thread.

    Raises:
        InputError: one of them fails; what is finished stays.
    """
    place, record = folder_of(method, output), record_of(method, output)
    record.write(finished=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for words in method.commands(place, fields_of(method, output)):
        run_logged([sys.executable, *words], f"The measurement of {method.name}", place / "log.txt", environment)
    record.write(finished=True)


def measure_all(left: Sequence[Method], output: Path, workers: int) -> None:
    """Measure methods, so many side by side; after a failure those that run are finished, and no other is begun.

    Raises:
        InputError: as :func:`measure`.
    """
    ended = Event()

    def attempt(method: Method) -> None:
        if not ended.is_set():
            try:
                measure(method, output)
            except BaseException:
                ended.set()
                raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            for number, (method, _) in enumerate(zip(left, pool.map(attempt, left), strict=True), start=1):
                print(f"{number} of {len(left)} measured: {method.name}", flush=True)
        finally:
            ended.set()


def folder_of(method: Method, output: Path) -> Path:
    """Where the evaluation of a method lies."""
    return output / method.name.replace(", ", "_").replace(" ", "_")


def fields_of(method: Method, output: Path) -> Path:
    """Where a tool leaves its fields."""
    return output / "fields" / method.name


def record_of(method: Method, output: Path) -> RunRecord:
    """What the evaluation of a method was made with."""
    place = folder_of(method, output)
    return RunRecord(place / RECORD, place, "figures", method.settings, option="--output")


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Measure every network of brains that ships, with and without optimisation on the pair, and the "
        "classical tools, on the same pairs; write the leaderboard.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--dataset_dir", type=Path, required=True, help="folder with dataset.json, imagesTr, labelsTr")
    add("--label_groups", type=Path, required=True, help="JSON that joins labels to groups and says which count")
    add("--tools", nargs="*", choices=TOOLS, default=TOOLS, help="classical tools; default: all")
    add("--python", default=sys.executable, help="interpreter that has the tools' packages; default: this one")
    add("--workers", type=whole(1), default=1, help="methods side by side, each on one thread; default: 1")
    add("--output", type=Path, required=True, help="folder of the evaluations")
    add("--board", type=Path, help="folder of the leaderboard; default: --output")
    add_switch(options, "overwrite", "measure again what has other weights by now, and replace the leaderboard")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Raises:
        InputError: when data or packages are missing, folders hold something else, or a measurement fails.
    """
    given = parser().parse_args(argv)
    given.dataset_dir, given.label_groups = given.dataset_dir.resolve(), given.label_groups.resolve()
    for path in (given.dataset_dir / "dataset.json", given.label_groups):
        if not path.is_file():
            raise InputError(f"{path} does not exist; name the data with --dataset_dir and --label_groups.")
    output = given.output.resolve()
    board = given.board or output
    leaderboard.check_free(board, given.overwrite)
    every = methods(given)
    left = [method for method in every if not is_measured(method, output, given.overwrite)]
    for method in left:
        if method.name in TOOLS:
            check_installed(method.name, given.python)
    measure_all(left, output, given.workers)
    runs = [f"{method.name}={folder_of(method, output)}" for method in every]
    words = [*runs, "--output", str(board), "--overwrite", "true", "--title", TITLE]
    words += ["--reference", REFERENCE] if REFERENCE in given.tools else []
    leaderboard.main([*words, "--figures", *FIGURES, "--notes", *NOTES])


if __name__ == "__main__":
    run_tool(main)

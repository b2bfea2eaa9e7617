# SPDX-License-Identifier: Apache-2.0
"""Register pairs with a classical package, as fields that evaluate.py scores beside the networks'.

Example: ``python scripts/baselines.py greedy --dataset_dir data --section validation --output fields/greedy``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from tqdm.auto import tqdm

from common.checks import InputError
from common.cli import add_switch, run_tool, whole
from common.data import read_section
from common.data.readers import READERS, SECTIONS
from common.data.readers.datalist import load_json
from common.data.readers.listing import distinguish_ids, make_subject
from common.evaluation.pair_files import Folder
from common.evaluation.pair_lists import read_pair_list
from common.io.run_record import RunRecord
from common.io.tables import write_csv
from scripts.baseline_pair import MARGIN, TOLERANCE, Subject, ddf_name, digest, read_scan, run_pair
from scripts.classical import METHODS, SMOOTHING

# Prints a package's version; fails where the package, or a module of those that follow, is absent.
PROBE = """
import sys, importlib.metadata, importlib.util
if not all(importlib.util.find_spec(module) for module in sys.argv[2:]):
    sys.exit(1)
print(importlib.metadata.version(sys.argv[1]))
"""
RECORD, PAIRS = "baselines.json", "pairs.csv"


def find_pairs(arguments: argparse.Namespace) -> list[tuple[Subject, Subject]]:
    """(moving, fixed) subjects of the pair list or of the data set.

    Raises:
        InputError: when a list or an image is missing, or two images of a pair list share their names.
    """
    if arguments.pairs is None:
        if arguments.images is not None:
            raise InputError("--images belongs to --pairs; a data set in --dataset_dir knows its images, leave it out.")
        listing = read_section(arguments.dataset_dir, arguments.reader, arguments.section)
        return [(listing.subjects[moving], listing.subjects[fixed]) for moving, fixed in listing.every_pair()]
    listed = read_pair_list(arguments.pairs).pairs
    folder = None if arguments.images is None else Folder(arguments.images, "images")
    files: dict[str, Path] = {}
    for entry in (entry for pair in listed for entry in (pair.moving, pair.fixed)):
        found = folder.find(entry) if folder else _beside(arguments.pairs, entry)
        if found is None:
            raise InputError(
                f"The image {entry} of the pair list {arguments.pairs} is not in {arguments.images or 'its folder'}; "
                "give the folder of the images with --images."
            )
        files[entry] = found
    unique = list(dict.fromkeys(files.values()))
    by_file = dict(zip(unique, distinguish_ids([make_subject(file, None) for file in unique]), strict=True))
    if len({subject["id"] for subject in by_file.values()}) < len(unique):
        raise InputError(f"Images of {arguments.pairs} in different folders share a file name; rename one of them.")
    return [(by_file[files[pair.moving]], by_file[files[pair.fixed]]) for pair in listed]


def _beside(pair_list: Path, entry: str) -> Path | None:
    return next((path for path in (pair_list.parent / entry, Path(entry)) if path.is_file()), None)


def check_installed(name: str, python: str) -> str | None:
    """Version of a method's package in the environment of an interpreter, None where it needs none.

    Raises:
        InputError: when it is absent, or the interpreter is.
    """
    method = METHODS[name]
    if method.package is None:
        return None
    try:
        ended = subprocess.run(
            [python, "-c", PROBE, method.package, *method.modules], capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise InputError(f"--python {python} does not start: {error.strerror}.") from error
    if ended.returncode != 0:
        raise InputError(
            f"{name} needs the package {method.package}: pip install -r {method.requirements} (in an environment of "
            "its own: --python names its interpreter)."
        )
    # A package may say something while it is looked for.
    return ended.stdout.split()[-1]


def open_record(
    output: Path, settings: dict[str, Any], overwrite: bool, names: Sequence[str]
) -> tuple[RunRecord, list[dict[str, Any]]]:
    """The folder's record, new or of an interrupted run with the same settings, and the pairs that it lists.

    Raises:
        InputError: when the folder holds fields of something else and ``overwrite`` is not set.
    """
    record = RunRecord(output / RECORD, output, "fields", settings, option="--output")
    if record.path.is_file() and not overwrite:
        return record, list(*record.read("cases"))
    existing = [output / name for name in names if (output / name).exists()]
    if existing and not overwrite:
        raise record.unknown(existing[0])
    if record.path.is_file():
        for case in load_json(record.path).get("cases", []):
            (output / ddf_name(case)).unlink(missing_ok=True)
    write_record(record, [])
    return record, []


def write_record(record: RunRecord, cases: list[dict[str, Any]]) -> None:
    """Note the finished pairs, and how their fields were checked."""
    record.write(margin=MARGIN, tolerance=TOLERANCE, cases=cases)


def is_done(case: dict[str, Any], moving: Subject, fixed: Subject, record: RunRecord) -> bool:
    """Whether an entry of the record belongs to a pair and its field is there.

    Raises:
        InputError: when an image has changed since.
    """
    if (case["moving_id"], case["fixed_id"]) != (moving["id"], fixed["id"]):
        return False
    name = ddf_name(case)
    if (case["moving_sha256"], case["fixed_sha256"]) != (digest(moving), digest(fixed)):
        raise record.refusal([f"image of {name}"])
    return (record.folder / name).is_file()


def run(
    settings: dict[str, Any], pairs: list[tuple[Subject, Subject]], output: Path, overwrite: bool, python: str
) -> None:
    """Register all pairs that the folder does not hold yet, with the packages of an interpreter.

    Raises:
        InputError: as :func:`open_record`, :func:`read_scan` and :func:`run_pair`; pairs that are finished stay.
    """
    names = [ddf_name({"moving_id": moving["id"], "fixed_id": fixed["id"]}) for moving, fixed in pairs]
    record, cases = open_record(output, settings, overwrite, names)
    with tqdm(pairs, desc=settings["method"], unit="pair") as bar:
        for moving, fixed in bar:
            if any(is_done(case, moving, fixed, record) for case in cases):
                continue
            case = run_pair(read_scan(moving), read_scan(fixed), settings, output, python)
            cases = [*(known for known in cases if ddf_name(known) != ddf_name(case)), case]
            write_record(record, cases)
            bar.write(describe(case))
    write_csv(output / PAIRS, [_listed(case) for case in cases])
    print(summary(settings, cases, output))


def describe(case: dict[str, Any]) -> str:
    """One line about a pair."""
    return (
        f"{case['moving_id']} to {case['fixed_id']}: {case['seconds']:.1f} s ({case['cpu_seconds']:.1f} CPU s, "
        f"{case['peak_memory_mb']:.0f} MB); differs from the package's image by at most {case['max_difference']:.1e} "
        f"of the range, mean {case['mean_difference']:.1e}"
    )


def summary(settings: dict[str, Any], cases: list[dict[str, Any]], output: Path) -> str:
    """Last lines of the terminal."""
    seconds = statistics.fmean(case["seconds"] for case in cases)
    largest = max(case["max_difference"] for case in cases)
    return (
        f"{output}: {len(cases)} fields of {settings['method']}, {seconds:.1f} s per pair with {settings['threads']} "
        f"thread(s); images warped by them equal the package's to {largest:.1e} of the range.\nScore them: python "
        f"scripts/evaluate.py --fields {output} --pairs {output / PAIRS} --labels ... --images ... --output ..."
    )


def _listed(case: dict[str, Any]) -> dict[str, Any]:
    ids = {"moving": case["moving_id"], "fixed": case["fixed_id"]}
    costs = {"seconds": case["seconds"], "cpu_seconds": case["cpu_seconds"]}
    return {**ids, "field": ddf_name(case), **costs, "peak_memory_gb": case["peak_memory_mb"] / 1000}


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What is recorded of a run, the package's version included.

    Raises:
        InputError: when the package is absent or an option does not belong to the method.
    """
    method = METHODS[arguments.method]
    options = dict(method.options)
    if arguments.smoothing is not None:
        if "smoothing" not in options:
            raise InputError(f"--smoothing is an option of greedy, {arguments.method} has none; leave it out.")
        options["smoothing"] = SMOOTHING[arguments.smoothing]
    if arguments.threads < 1:
        raise InputError(f"--threads is {arguments.threads}; give 1 or more.")
    found = check_installed(arguments.method, arguments.python)
    settings = {"method": arguments.method, "package": method.package, "version": found, "options": options}
    return {**settings, "threads": arguments.threads}


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Register pairs with a classical package. Writes MOVING_to_FIXED_ddf.nii.gz (voxels), "
        f"{RECORD} (time, memory, options, check of each field) and {PAIRS} for evaluate.py.",
        epilog="The packages: pip install -r requirements-baselines.txt; fireants: requirements-fireants.txt, in an "
        "environment of its own. The same command goes on after an interruption.",
    )
    add = options.add_argument
    add("method", choices=tuple(METHODS), help="zero needs no package")
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", type=Path, help="CSV moving,fixed; JSON list; data list; evaluation config")
    source.add_argument("--dataset_dir", type=Path, help="folder of a data set that lists its pairs")
    add("--images", type=Path, help="with --pairs: folder of the images, or that which the list's paths start from")
    add("--reader", default="datalist", choices=tuple(READERS), help="with --dataset_dir; default: %(default)s")
    add("--section", default="validation", choices=SECTIONS, help="with --dataset_dir; default: %(default)s")
    add("--output", type=Path, required=True, help="folder of the fields")
    add("--threads", type=whole(1), default=2, help="default: %(default)s")
    add("--smoothing", choices=tuple(SMOOTHING), help="of greedy: its default in voxels, or that published for 1 mm")
    add("--python", default=sys.executable, help="interpreter that has the package; default: this one")
    add_switch(options, "overwrite", "replace what is in the folder")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    run(settings_of(arguments), find_pairs(arguments), arguments.output, arguments.overwrite, arguments.python)


if __name__ == "__main__":
    run_tool(main)

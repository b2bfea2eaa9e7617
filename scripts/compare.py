# SPDX-License-Identifier: Apache-2.0
"""Put several registration methods side by side: evaluate the fields of each, write one page to look at.

Example: ``python scripts/compare.py --fields greedy=out/greedy network=out/eoir --images imagesTr --labels labelsTr
--pairs pairs.csv --output comparison``
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from common.checks import InputError
from common.cli import add_switch, run_tool, whole
from common.evaluation.field_evaluation import EvaluationRequest
from common.io.fields import CONVENTIONS
from common.report.comparison import compare_fields

EPILOG = """\
OUTPUT/NAME gets the evaluation of each method as scripts/evaluate.py writes it; OUTPUT/compare.html has the table, box
plots over pairs and per label, and a slice viewer that switches between the methods. It needs no network.

  python scripts/compare.py --fields greedy=out/greedy network=out/eoir --images imagesTr --labels labelsTr \\
      --pairs dataset.json --output comparison
  python scripts/compare.py --fields syn=syn ours=ours --convention syn=lps_mm --images imagesTr --labels labelsTr \\
      --pairs pairs.csv --output comparison --label_groups label_groups.json

The same command goes on where an interrupted one stopped.
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Evaluate the displacement fields of several methods alike and put them on one page.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--fields", nargs="+", required=True, metavar="NAME=DIR", help="methods and the folders of their fields")
    add("--images", type=Path, help="folder of the images; without it there is no viewer")
    add("--labels", type=Path, help="folder of the label maps")
    add("--pairs", type=Path, required=True, help="CSV moving,fixed; JSON list; data list; evaluation config")
    add("--output", type=Path, required=True, help="folder of the results")
    add(
        "--convention",
        nargs="+",
        default=[],
        metavar="[NAME=]CONVENTION",
        help=f"{', '.join(CONVENTIONS)}; default: auto",
    )
    add("--section", help="part of a data list: validation, test or training")
    add("--label_groups", type=Path, help="JSON that joins labels to groups, names them, and says which count")
    add("--label_numbering", default="ids", choices=("ids", "original"), help="values of the label maps in that JSON")
    add("--label_values", help="labels that count, such as 1-35")
    add("--hd95", default="voxels", choices=("voxels", "millimetres", "none"), help="unit; none leaves it out")
    add("--grids", choices=("header", "array"), help="whether headers count; default: header, for challenges array")
    add("--workers", type=whole(1), help="processes, about 1 GB each; default: one per processor")
    add("--title", default="Comparison of registrations", help="of the page")
    for name, meaning in (
        ("trust", "evaluate fields that look like another convention"),
        ("overwrite", "replace a comparison that is there"),
    ):
        add_switch(options, name, meaning)
    return options


def named(entries: Sequence[str]) -> dict[str, Path]:
    """NAME=DIR as a dictionary.

    Raises:
        InputError: when an entry has another form, or a name repeats.
    """
    folders: dict[str, Path] = {}
    for entry in entries:
        name, sign, folder = entry.partition("=")
        if not (name and sign and folder):
            raise InputError(f"--fields {entry} is not of the form NAME=DIR, such as greedy=out/greedy.")
        if name in folders:
            raise InputError(f"--fields names {name} twice; give every method a name of its own.")
        folders[name] = Path(folder)
    return folders


def stated(entries: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Conventions by method; one without a name holds for all that have none of their own.

    Raises:
        InputError: when a convention is unknown.
    """
    conventions: dict[str, str] = {}
    own = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    for value in (entry for entry in entries if "=" not in entry):
        conventions = dict.fromkeys(names, value)
    conventions |= own
    unknown = [name for name in own if name not in names]
    if unknown:
        raise InputError(f"A convention is stated for {unknown[0]!r}, which is none of {', '.join(names)}.")
    for name, value in conventions.items():
        if value not in CONVENTIONS:
            raise InputError(f"The convention {value!r} of {name} is unknown; use one of {', '.join(CONVENTIONS)}.")
    return conventions


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = vars(parser().parse_args(argv))
    fields = named(given.pop("fields"))
    conventions = stated(given.pop("convention"), list(fields))
    given["hd95"] = None if given["hd95"] == "none" else given["hd95"]
    run = {name: given.pop(name) for name in ("workers", "overwrite", "title")}
    output = given.pop("output")
    requests = {
        name: EvaluationRequest(folder, convention=conventions.get(name, "auto"), **given)
        for name, folder in fields.items()
    }
    compare_fields(requests, output, **run)


if __name__ == "__main__":
    run_tool(main)

# SPDX-License-Identifier: Apache-2.0
"""Score a folder of displacement fields, whoever made them, as Learn2Reg and LUMIR do.

Example: ``python scripts/evaluate.py --fields fields --images imagesTr --labels labelsTr --pairs pairs.csv --output
results`` with ``moving,fixed`` as first line of pairs.csv.
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

from common.cli import add_switch, run_tool, whole
from common.evaluation.field_evaluation import EvaluationRequest
from common.evaluation.pair_measure import FOREGROUNDS
from common.io.formats.conventions import CONVENTIONS, meanings
from common.io.landmarks import COORDINATES
from common.report.field_evaluation import report_fields

EPILOG = """\
Fields are found by the usual names: MOVING_to_FIXED_ddf.nii.gz (or _displacement.nii.gz, _transform.h5, _map.pt) of
this project, disp_FIXED_MOVING.nii.gz|npz of Learn2Reg with long or short numbers, a column "field" of the pair list,
or --pattern. The convention is found by the header and checked against the images.

  python scripts/evaluate.py --fields out --images imagesTr --labels labelsTr --pairs dataset.json --output results
  python scripts/evaluate.py --fields out --images OASIS --labels OASIS --pairs OASIS_VAL_evaluation_config.json \\
      --output results
  python scripts/evaluate.py --fields syn --images imagesTr --labels labelsTr --pairs pairs.csv --output results \\
      --pattern "{fixed}_{moving}_1Warp.nii.gz" --label_groups label_groups.json

The same command goes on where an interrupted one stopped.

What a field does not say itself, --convention states:
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Score a folder of displacement fields: Dice, HD95, TRE, folding, NDV, SDlogJ of every pair, as "
        "cases.csv, labels.csv, summary.json and report.html.",
        epilog=EPILOG + meanings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--fields", type=Path, required=True, help="folder of the displacement fields")
    add("--images", type=Path, help="folder of the images, or that which the list's paths start from")
    add("--labels", type=Path, help="folder of the label maps, likewise")
    add("--pairs", type=Path, required=True, help="CSV moving,fixed[,field]; JSON list; data list; evaluation config")
    add("--output", type=Path, required=True, help="folder of the results")
    add("--convention", default="auto", choices=CONVENTIONS, metavar="NAME", help="of the fields, see below")
    add("--pattern", help='names of the fields, such as "{moving}_{fixed}.nii.gz"')
    add("--section", help="part of a data list: validation, test or training")
    add("--label_groups", type=Path, help="JSON that joins labels to groups, and says which count")
    add("--label_numbering", default="ids", choices=("ids", "original"), help="values of the label maps in that JSON")
    add("--label_values", help="labels that count, such as 1-35; default: those of the list, of the groups, or all")
    add("--landmarks", type=Path, help="folder of landmarks, tables, 3D Slicer's or volumes, named like the images")
    add("--coordinates", default="voxel", choices=COORDINATES, help="of tables of landmarks; default: voxel")
    add("--hd95", default="voxels", choices=("voxels", "millimetres", "none"), help="unit; none leaves it out")
    add("--ndv_mask", choices=FOREGROUNDS, help="where folding counts; default: fixed, for LUMIR moving")
    add("--grids", choices=("header", "array"), help="whether headers count; default: header, for challenges array")
    for name, meaning in (
        ("trust", "evaluate fields that look like another convention"),
        ("allow_missing", "score what is there when pairs are missing"),
        ("overwrite", "replace an evaluation that is there"),
    ):
        add_switch(options, name, meaning)
    add("--workers", type=whole(1), help="processes, about 1 GB each; default: one per processor")
    add("--title", help="of the page")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = vars(parser().parse_args(argv))
    given["hd95"] = None if given["hd95"] == "none" else given["hd95"]
    run = {name: given.pop(name) for name in ("workers", "overwrite", "title")}
    output = given.pop("output")
    report_fields(EvaluationRequest(**given), output, **run)


if __name__ == "__main__":
    run_tool(main)

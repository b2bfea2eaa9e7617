# SPDX-License-Identifier: Apache-2.0
"""Deform a CT by known random fields, and measure how well a registration finds them.

Example: ``python scripts/recover.py make --image ct.nii.gz --output known`` and, with the displacements that inference
wrote, ``python scripts/recover.py measure --data known --fields known_ddf``.
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

from common.cli import positive, run_tool, whole
from common.data.known_fields import make_known_fields
from common.evaluation.recovery import measure_recovery
from common.io.tables import write_csv

EPILOG = """\
make writes a data set for --reader datalist: the scan and copies of it, copy(x) = scan(x + ddf(x)), with
the true ddf in fields/. Train a bundle on it, register its section "test", and measure:

  python scripts/recover.py make --image ct.nii.gz --output known
  python -m monai.bundle run train --bundle_root bundles/eoir_abdomenct \\
      --config_file bundles/eoir_abdomenct/configs/train.json --dataset_dir known --reader datalist \\
      --supervised false --zoom 1 --train#dataloader#sampler#strategy atlas
  python -m monai.bundle run infer --bundle_root bundles/eoir_abdomenct \\
      --config_file bundles/eoir_abdomenct/configs/inference.json --dataset_dir known --reader datalist \\
      --section test --spacing None --output_dir known_ddf
  python scripts/recover.py measure --data known --fields known_ddf --output errors.csv
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Deform a CT by known random fields, and measure how well a registration finds them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = options.add_subparsers(dest="command", required=True, metavar="make|measure")
    make = commands.add_parser("make", help="deform a scan into a data set")
    make.add_argument("--image", type=Path, required=True, help="NIfTI volume")
    make.add_argument("--label", type=Path, help="its label map, deformed alike")
    make.add_argument("--output", type=Path, required=True, help="new folder of the data set")
    for section, count in (("training", 16), ("validation", 2), ("test", 6)):
        make.add_argument(f"--{section}", type=whole(0), default=count, help=f"copies for {section}, default {count}")
    make.add_argument("--largest", type=positive, default=8.0, help="voxels that no displacement exceeds, default 8")
    make.add_argument("--seed", type=whole(0), default=0, help="of the fields, default 0")
    measure = commands.add_parser("measure", help="endpoint errors of displacements, inside the body")
    measure.add_argument("--data", type=Path, required=True, help="folder that make wrote")
    measure.add_argument("--fields", type=Path, required=True, help="folder with MOVING_to_FIXED_ddf.nii.gz")
    measure.add_argument("--section", default="test", choices=("training", "validation", "test"))
    measure.add_argument("--output", type=Path, help="CSV to write the table to")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    given = parser().parse_args(argv)
    if given.command == "make":
        counts = {section: getattr(given, section) for section in ("training", "validation", "test")}
        print(
            make_known_fields(given.output, given.image, given.label, largest=given.largest, seed=given.seed, **counts)
        )
        return
    rows = measure_recovery(given.data, given.fields, given.section)
    columns = {name: max(len(name), 6) + 2 for name in rows[0] if name != "fixed_id"}
    print(f"{'voxels':<12}" + "".join(f"{name:>{width}}" for name, width in columns.items()))
    for row in rows:
        print(f"{row['fixed_id']:<12}" + "".join(f"{row[name]:>{width}.3f}" for name, width in columns.items()))
    if given.output is not None:
        write_csv(given.output, rows)


if __name__ == "__main__":
    run_tool(main)

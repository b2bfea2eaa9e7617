# SPDX-License-Identifier: Apache-2.0
"""Measure what the uncertainty of a network is worth, on phantoms whose true displacements are known.

Example: ``python scripts/calibration.py --data shapes --results registered --output calibration.png``, with results of
inference on the phantoms of ``python -m common.data.shapes3d``; docs/uncertainty.md has the whole of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from common.cli import run_tool
from common.evaluation.calibration import measure_calibration
from common.io.files import write_bytes
from common.io.tables import write_csv
from common.report.calibration import draw_calibration


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Compare the uncertainty of registered phantoms with the errors that were made.",
        epilog="Voxels count where the fixed phantom has a label; docs/uncertainty.md says what the figures mean.",
    )
    options.add_argument("--data", type=Path, required=True, help="phantoms of common.data.shapes3d")
    options.add_argument("--results", type=Path, required=True, help="folder that inference wrote")
    options.add_argument("--section", default="test", choices=("training", "validation", "test"))
    options.add_argument("--output", type=Path, help="PNG to draw; tables are written beside it")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    found = measure_calibration(given.data, given.results, given.section)
    for rows in (found.pairs, found.bins):
        columns = {name: max(len(str(rows[0][name])) if name == "pair" else 8, len(name)) + 2 for name in rows[0]}
        print("".join(f"{name:>{width}}" for name, width in columns.items()))
        for row in rows:
            print("".join(f"{_text(row[name]):>{width}}" for name, width in columns.items()))
    if given.output is not None:
        write_bytes(given.output, draw_calibration(found))
        for name, rows in found._asdict().items():
            write_csv(given.output.with_name(f"{given.output.stem}_{name}.csv"), rows)


def _text(value: str | float) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_tool(main)

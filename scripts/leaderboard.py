# SPDX-License-Identifier: Apache-2.0
"""Put evaluations of several methods beside each other, and beside a published table.

    python scripts/leaderboard.py greedy=out/greedy eoir=out/eoir --output out/leaderboard
    python scripts/leaderboard.py out/lumir_val --published LUMIR2024:val --output out/leaderboard

A run is the folder that an evaluation wrote (cases.csv, labels.csv, summary.json). Runs are compared on the pairs that
all have: mean and standard deviation, paired Wilcoxon tests with Holm's correction, Learn2Reg's rank scores, LUMIR's
min-max score. The same tables are written as leaderboard.md, leaderboard.csv and leaderboard.html, and printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.threads import share_cores

share_cores()

from common.checks import InputError
from common.cli import add_switch, run_tool
from common.evaluation.leaderboard import compare
from common.evaluation.published import published_table
from common.evaluation.runs import read_run
from common.io.files import write_bytes
from common.io.tables import write_csv
from common.report.leaderboard_page import csv_rows, left_out, markdown, page

FILES = ("leaderboard.md", "leaderboard.csv", "leaderboard.html")


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", metavar="RUN", help="folder of an evaluation, or NAME=FOLDER")
    options.add_argument("--published", metavar="DATASET[:SPLIT]", help="published table, e.g. OASIS or LUMIR2024:val")
    options.add_argument("--output", type=Path, required=True, help="folder of the three files")
    options.add_argument("--reference", metavar="NAME", help="run to test against (default: the best of each figure)")
    options.add_argument(
        "--score_ranges",
        choices=("table", "published"),
        default="table",
        help="what LUMIR's score is normalised by: all rows, or the published ones alone (default: %(default)s)",
    )
    options.add_argument("--figures", nargs="+", metavar="NAME", help="columns, such as dice ndv (default: all)")
    options.add_argument("--title", default="Leaderboard", help="heading (default: %(default)s)")
    options.add_argument("--notes", nargs="+", default=[], metavar="TEXT", help="paragraphs below the heading")
    add_switch(options, "overwrite", "replace existing files")
    return options


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with a leaderboard in it.

    Raises:
        InputError: naming its files, unless ``overwrite``.
    """
    existing = [name for name in FILES if (folder / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{folder} holds a leaderboard already ({', '.join(existing)}): choose another folder, or replace it with "
            "--overwrite true."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line.

    Raises:
        InputError: when runs cannot be compared, or the output exists.
    """
    arguments = parser().parse_args(argv)
    check_free(arguments.output, arguments.overwrite)
    if arguments.score_ranges == "published" and arguments.published is None:
        raise InputError("--score_ranges published needs a published table: add --published.")
    published = published_table(arguments.published) if arguments.published else []
    runs = [read_run(run) for run in arguments.runs]
    ranges = arguments.score_ranges == "published"
    board = compare(runs, published, arguments.reference, ranges, arguments.figures)
    text = markdown(board, arguments.title, arguments.notes)
    write_bytes(arguments.output / "leaderboard.md", text.encode())
    write_csv(arguments.output / "leaderboard.csv", csv_rows(board))
    write_bytes(arguments.output / "leaderboard.html", page(board, arguments.title, arguments.notes))
    print(text)
    for sentence in left_out(board):
        print(f"NOTE: {sentence}", file=sys.stderr)
    print(f"Written: {', '.join(str(arguments.output / name) for name in FILES)}")


if __name__ == "__main__":
    run_tool(main)

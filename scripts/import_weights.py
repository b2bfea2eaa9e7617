# SPDX-License-Identifier: Apache-2.0
"""Bring the authors' weights into a bundle, or write a bundle's weights in the authors' layout.

Examples: ``python scripts/import_weights.py eoir_lumir net_latest.pth`` writes bundles/eoir_lumir/models/model.pt;
``python scripts/import_weights.py eoir_lumir --export official.pth`` goes the other way. Nothing in the file is run:
only tensors and plain values are read.
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

from common.cli import add_switch, run_tool, whole
from common.weights.families import FAMILIES
from common.weights.official import export_weights, import_weights
from scripts.package import find_bundle


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Import published weights into a bundle, or export a bundle's weights in the published layout.",
        epilog="Example: python scripts/import_weights.py eoir_lumir net_latest.pth",
    )
    options.add_argument("bundle", help="name of a folder in bundles, e.g. eoir_lumir")
    options.add_argument(
        "path",
        nargs="?",
        type=Path,
        help="published checkpoint; with --export the weights to export, by default models/model.pt of the bundle",
    )
    options.add_argument("--output", type=Path, help="file to write; default: models/model.pt of the bundle")
    options.add_argument(
        "--variant",
        choices=[variant for family in FAMILIES for variant in family.variants],
        help="which network it is, where the checkpoint does not tell",
    )
    options.add_argument(
        "--config",
        metavar="NAME",
        help="configuration of the bundle that exchanges its network, e.g. diff of TransMorph's",
    )
    options.add_argument("--export", type=Path, metavar="FILE", help="write the published layout to this file instead")
    options.add_argument(
        "--size",
        type=whole(1),
        nargs=3,
        metavar="N",
        help="spatial size that the published network is built for, with --export; default: that of the data set",
    )
    add_switch(options, "overwrite", "replace a file that exists")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.export is not None and (arguments.output or arguments.variant):
        options.error(
            "--output and --variant are for importing; with --export only path, --size, --config and --overwrite count"
        )
    if arguments.export is None and (arguments.path is None or arguments.size):
        options.error("name the published checkpoint to import, or export with --export FILE (--size goes with it)")
    bundle = find_bundle(arguments.bundle)
    if arguments.export is not None:
        lines = export_weights(
            bundle, arguments.export, arguments.path, arguments.size, arguments.overwrite, arguments.config
        )
    else:
        lines = import_weights(
            bundle, arguments.path, arguments.output, arguments.variant, arguments.overwrite, arguments.config
        )
    print("\n".join(lines))


if __name__ == "__main__":
    run_tool(main)

# SPDX-License-Identifier: Apache-2.0
"""Write the network of a bundle as ``models/model.ts`` and ``models/model.pt2``, which need none of this code.

Example: ``python scripts/export.py eoir_oasis --options "--supervised false --network_def#start_channel 8"``; options
are what the bundle's commands are told of its network. ``scripts/package.py`` packs the files that are there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from monai.bundle import ConfigParser

from common.checks import InputError
from common.cli import run_tool
from common.engine.command_line import values_of
from common.engine.export import FORMATS, export_network
from scripts.package import find_bundle


def network_of(bundle: Path, options: Sequence[str]) -> tuple[Any, int]:
    """The network of a bundle with its weights, on the CPU.

    Args:
        bundle: its folder.
        options: "--name", "value" and so on, as for the bundle's commands.

    Returns:
        The network, and the number of spatial axes of its images.

    Raises:
        InputError: an option is none of the bundle's, or there are no weights that fit.
    """
    config = ConfigParser()
    config.read_config(str(bundle / "configs" / "inference.json"))
    config.read_meta(str(bundle / "configs" / "metadata.json"))
    given = values_of(options)
    unknown = [name for name in given if name.partition("#")[0] not in config]
    if unknown:
        raise InputError(f"--{unknown[0]} is no option of {bundle.name}.")
    config.update({"bundle_root": str(bundle), "device": "$torch.device('cpu')"})
    config.update(given)
    network = config.get_parsed_content("network")
    if not network.state_dict():
        raise InputError(f"{bundle.name} has no network with weights: there is nothing to export.")
    return network, int(network.spatial_dims)


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description="Write models/model.ts and models/model.pt2 of a bundle, checked at three sizes before.",
        epilog="Example: python scripts/export.py eoir_oasis --options '--network_def#start_channel 8'",
    )
    options.add_argument("bundle", help="name of a folder in bundles, e.g. eoir_shapes3d")
    options.add_argument("--ckpt_path", help="weights; default: models/model.pt of the bundle")
    options.add_argument("--options", default="", help="those of the bundle that change its network, as one text")
    options.add_argument("--output_dir", type=Path, help="default: models of the bundle")
    options.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help="default: both")
    return options


def main() -> None:
    """Command line."""
    arguments = parser().parse_args()
    bundle = find_bundle(arguments.bundle)
    others = shlex.split(arguments.options)
    if arguments.ckpt_path is not None:
        others += ["--ckpt_path", os.path.abspath(arguments.ckpt_path)]
    network, dims = network_of(bundle, others)
    folder = arguments.output_dir or bundle / "models"
    for path, difference in export_network(network, folder, dims, arguments.formats).items():
        size = path.stat().st_size / 1e6
        print(f"{path}: {size:.1f} MB, at most {difference:.1g} voxel from the network.")


if __name__ == "__main__":
    run_tool(main)

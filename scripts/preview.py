# SPDX-License-Identifier: Apache-2.0
"""Draw the picture of a bundle for the page of a zoo, ``docs/preview.png``, from a pair that ``infer`` has registered.

Example: ``python scripts/preview.py eoir_shapes3d --moving MOVING.nii.gz --fixed FIXED.nii.gz --results out``, with the
folder that ``infer`` wrote with ``--outputs warped,ddf``. The scans must be such that they may be shown to everyone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.checks import InputError
from common.cli import run_tool
from common.io.fields import read_field
from common.io.files import write_bytes
from common.io.nifti import read_grid, read_image
from common.report.bundle_list import PICTURE
from common.report.panels import as_png, preview
from common.spatial.plane import downwards, in_plane
from scripts.package import find_bundle


def draw(bundle: Path, moving: Path, fixed: Path, results: Path) -> Path:
    """Write the picture.

    Args:
        bundle: its folder.
        moving: image of the pair, on the grid of ``fixed``.
        fixed: image of the pair.
        results: folder with ``*_warped.nii.gz`` and ``*_ddf.nii.gz`` of this pair alone.

    Returns:
        The picture.

    Raises:
        InputError: when a file is missing or there is more than one pair.
    """
    files = {name: sorted(results.glob(f"*_{name}.nii.gz")) for name in ("warped", "ddf")}
    for name, found in files.items():
        if len(found) != 1:
            raise InputError(f"{results} has {len(found)} files *_{name}.nii.gz; give a folder with those of one pair.")
    before, reference, after = (read_image(path)[0][None] for path in (moving, fixed, files["warped"][0]))
    grid, dims = read_grid(fixed), reference.ndim - 1
    ddf = in_plane(read_field(files["ddf"][0], grid)[0][0], dims)
    target = bundle / PICTURE
    figure = preview(before, reference, after, ddf, downwards=dims == 2 and downwards(grid.affine))
    write_bytes(target, as_png(figure))
    return target


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(description="Draw docs/preview.png of a bundle from a registered pair.")
    options.add_argument("bundle", help="name of a folder in bundles")
    options.add_argument("--moving", type=Path, required=True, help="image, on the grid of the fixed one")
    options.add_argument("--fixed", type=Path, required=True, help="image")
    options.add_argument("--results", type=Path, required=True, help="folder that infer wrote for this pair alone")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    print(draw(find_bundle(arguments.bundle), arguments.moving, arguments.fixed, arguments.results))


if __name__ == "__main__":
    run_tool(main)

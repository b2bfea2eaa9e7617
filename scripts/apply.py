# SPDX-License-Identifier: Apache-2.0
"""Apply saved transforms to an image, a label map or a table of landmarks."""

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
from common.cli import add_switch, finite, run_tool
from common.io.apply import Chain, move_landmarks, save_transform, warp_file
from common.io.formats.conventions import CONVENTIONS, meanings
from common.io.formats.writer import FORMS
from common.io.landmarks import COORDINATES, POINT_SUFFIXES
from common.io.nifti import read_grid
from common.io.nifti_files import check_nifti_name
from common.io.png import PNG

_DESCRIPTION = """\
Apply one or more saved transforms to an image (linear), a label map (nearest) or a table of landmarks.

A transform M_to_F, made by registering the moving scan M to the fixed scan F, maps points of F to points of M. That is
what resampling M on the grid of F needs:

  python scripts/apply.py --transform M_to_F_transform.h5 --moving M.nii.gz --reference F.nii.gz --output warped.nii.gz

Landmarks of F therefore go to M by the transform itself, and landmarks of M to F by its inverse:

  python scripts/apply.py --transform M_to_F_transform.h5 --landmarks points_in_F.csv --output points_in_M.csv
  python scripts/apply.py --transform inverse:M_to_F_transform.h5 --landmarks points_in_M.csv --output points_in_F.csv

Where inference has left M_to_F_map.pt, the map as a function (NePhi), it serves in the place of M_to_F_transform.h5:
landmarks are then mapped where they lie, without interpolation between voxels, and back by the network's own way back.

Images of two dimensions, NIfTI or PNG, go by the same commands.

Several transforms are named in the order in which a point of the reference goes through them, as for
antsApplyTransforms: M comes to F over A by --transform A_to_F_transform.h5 M_to_A_transform.h5.
"""
_EPILOG = """\
Files: ITK transforms (.h5 .hdf5 .tfm .txt .mat: this project, ITK, ANTs, SimpleITK, 3D Slicer), maps as functions
(.pt, this project), vector images of ITK, ANTs, Greedy and elastix, fields in voxels (.nii.gz .npz .npy, Learn2Reg),
and what NiftyReg, SPM, FSL, FreeSurfer, SynthMorph, EasyReg and MRtrix write; docs/evaluation.md has the table.
B-splines are sampled on the grid of the reference and move nothing outside it, so of several transforms only the first
one should have them.

What a file does not say itself, --convention states:
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(
        description=_DESCRIPTION, epilog=_EPILOG + meanings(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--transform",
        nargs="+",
        required=True,
        metavar="FILE",
        help="from the reference to the moving scan; inverse:FILE is backwards",
    )
    what = options.add_mutually_exclusive_group()
    what.add_argument("--moving", type=Path, metavar="IMAGE", help="image to warp, linear interpolation")
    what.add_argument("--label", type=Path, metavar="IMAGE", help="label map to warp, nearest voxel, 0 outside")
    what.add_argument(
        "--landmarks",
        type=Path,
        metavar="FILE",
        help="table (commas, semicolons, tabs, blanks) of three numbers a line (two in two dimensions) or with columns "
        "x, y, z, others are kept; or 3D Slicer's .fcsv, .mrk.json",
    )
    options.add_argument(
        "--save_as",
        choices=tuple(FORMS),
        help="instead of warping, write the transforms as one field for another tool: "
        + "; ".join(f"{name} ({form.use})" for name, form in FORMS.items()),
    )
    options.add_argument(
        "--output",
        type=Path,
        required=True,
        help="file to write: .nii.gz or .nii, of two dimensions .png, too; for landmarks .csv, .tsv, .txt, .fcsv or "
        ".mrk.json",
    )
    options.add_argument(
        "--reference",
        type=Path,
        metavar="IMAGE",
        help="grid of the result, any; for landmarks the image whose voxels they are given in",
    )
    options.add_argument(
        "--target",
        type=Path,
        metavar="IMAGE",
        help="for landmarks: the moving scan, whose voxels come out, or which files of FSL need",
    )
    options.add_argument(
        "--coordinates", choices=COORDINATES, help=f"of tables of landmarks; default: {COORDINATES[0]}"
    )
    options.add_argument("--outside", type=finite, help="value outside of the image; default: its smallest value")
    options.add_argument(
        "--convention",
        nargs="+",
        choices=CONVENTIONS,
        default=["auto"],
        metavar="NAME",
        help="of the transforms, one or one for each, see below; default: auto",
    )
    add_switch(options, "overwrite", "replace the output")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    _check(arguments)
    reference = None if arguments.reference is None else read_grid(arguments.reference)
    scan = arguments.moving or arguments.label or arguments.target
    chain = Chain(arguments.transform, reference, arguments.convention, None if scan is None else read_grid(scan))
    if arguments.save_as is not None:
        save_transform(arguments.output, arguments.save_as, chain, arguments.reference, arguments.moving)
        print(f"{arguments.output}: the way from {arguments.reference} to the moving scan, for {arguments.save_as}.")
        return
    if arguments.landmarks is not None:
        count, coordinates = move_landmarks(
            arguments.landmarks, arguments.output, chain, arguments.coordinates, arguments.reference, arguments.target
        )
        print(f"{arguments.output}: {count} landmarks, {coordinates}.")
        return
    is_label = arguments.label is not None
    source = arguments.label if is_label else arguments.moving
    warp_file(source, arguments.output, chain, arguments.reference, is_label, arguments.outside)
    print(f"{arguments.output}: {source} on the grid of {arguments.reference}.")


def _check(arguments: argparse.Namespace) -> None:
    """What can be refused before anything is read."""
    if arguments.output.exists() and not arguments.overwrite:
        raise InputError(f"{arguments.output} exists: choose another name, or replace it with --overwrite true.")
    if arguments.save_as is not None:
        _check_saving(arguments)
        return
    if arguments.moving is None and arguments.label is None and arguments.landmarks is None:
        raise InputError("Nothing to do: give --moving, --label or --landmarks, or --save_as.")
    if arguments.target is not None and arguments.landmarks is None:
        raise InputError("--target is for landmarks.")
    if arguments.landmarks is not None:
        if arguments.outside is not None:
            raise InputError("--outside is for images, not for landmarks.")
        if not str(arguments.output).lower().endswith(POINT_SUFFIXES):
            raise InputError(f"{arguments.output}: landmarks are written as {', '.join(POINT_SUFFIXES)}.")
        return
    if arguments.coordinates is not None:
        raise InputError("--coordinates is for landmarks: images and label maps have headers.")
    is_png = str(arguments.output).endswith(PNG)
    if not is_png:
        check_nifti_name(arguments.output)
    if arguments.reference is None:
        raise InputError("An image needs --reference, the image on whose grid the result shall lie.")
    if is_png and not read_grid(arguments.reference).flat:
        raise InputError(
            f"{arguments.output}: volumes are written as .nii.gz or .nii, images of two dimensions as .png."
        )
    if arguments.label is not None and arguments.outside is not None:
        raise InputError("--outside is for images; outside of a label map is 0.")


def _check_saving(arguments: argparse.Namespace) -> None:
    given = [name for name in ("label", "landmarks", "target", "outside", "coordinates") if vars(arguments)[name]]
    if given:
        raise InputError(f"--save_as writes a transform: --{given[0]} has no part in it.")
    check_nifti_name(arguments.output)
    if arguments.reference is None:
        raise InputError("--save_as needs --reference, the fixed scan on whose grid the field shall lie.")


if __name__ == "__main__":
    run_tool(main)

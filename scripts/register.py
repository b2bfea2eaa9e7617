# SPDX-License-Identifier: Apache-2.0
"""Register two scans with what this repository ships: nothing is trained, nothing is downloaded."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

from common.api import load_bundle
from common.api.choice import ANATOMIES, CHOICES, CONTRASTS, IO_STEPS, Choice
from common.checks import InputError
from common.cli import add_switch, positive, run_tool, whole
from common.data import registration_request
from common.data.request import pair_name
from common.engine.bundle_folder import check_writable
from common.io.nifti import read_grid
from common.io.provenance import provenance
from common.io.tables import write_json

OUTPUTS = ("warped", "transform", "panel")
RECORD = "record.json"
_KINDS = {
    "warped.nii.gz": "the moving scan on the grid of the fixed one",
    "warped_label.nii.gz": "its labels there",
    "transform.h5": "for 3D Slicer, ANTs, ITK and scripts/apply.py",
    "panel.png": "the picture to look at",
    RECORD: "all figures, options and versions",
}
_DESCRIPTION = """\
Register two scans: the moving one is warped until it lies on the fixed one, which stays as it is.

  python scripts/register.py FIXED.nii.gz MOVING.nii.gz --anatomy brain --output out

The scans may have any grid and orientation: NIfTI (.nii.gz, .nii), images of two dimensions also as .png, series of
DICOM slices as their folder. By headers, then by an affine alignment, then by a network where there is one for them,
and last by optimisation on the pair itself.
"""
_EPILOG = """\
What registers is what you say of the scans, whatever is in them:

{rule}

A brain is one without skull. Dice, where both label maps are given, is by header, after the affine alignment and
registered, the mean over all labels that both have or over those of --label_groups. All options that a bundle has:
python -m monai.bundle run infer, docs/register.md.
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    rule = "\n".join(
        f"  --anatomy {anatomy:5} --contrast {contrast:6} {chosen.bundle}, {chosen.options['similarity']}: {chosen.why}"
        for (anatomy, contrast), chosen in CHOICES.items()
    )
    options = argparse.ArgumentParser(
        description=_DESCRIPTION,
        epilog=_EPILOG.format(rule=rule),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("fixed", metavar="FIXED", help="scan that stays")
    add("moving", metavar="MOVING", help="scan that is warped")
    add("--anatomy", choices=ANATOMIES, default="any", help="what both scans show; default: any")
    add("--contrast", choices=CONTRASTS, default="same", help="whether tissues look alike in both; default: same")
    add("--io_steps", type=whole(0), default=IO_STEPS, help="of optimisation, on each level; default: %(default)s")
    add_switch(options, "affine", "align rigidly and affinely first; default: true", default=True)
    add("--spacing", type=positive, metavar="MM", help="voxels to work with; default: those of the bundle or the scan")
    add("--fixed_label", metavar="FILE", help="label map of the fixed scan, to measure with, never looked at before")
    add("--moving_label", metavar="FILE", help="label map of the moving scan, warped like it")
    add("--label_groups", metavar="FILE", help="JSON that joins labels to groups, and says which count")
    add("--label_numbering", choices=("ids", "original"), default="ids", help="values of the label maps in that JSON")
    add("--ckpt_path", metavar="FILE", help="weights in place of those in the box")
    add("--output", type=Path, default=Path("registered"), help="folder of the results; default: %(default)s")
    add_switch(options, "overwrite", "replace results of this pair that are there")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    given = parser().parse_args(argv)
    name = _pair(given)
    choice = CHOICES[given.anatomy, given.contrast]
    began = time.perf_counter(), time.process_time()
    options = _options(choice, given)
    bundle = load_bundle(choice.bundle, **options)
    check_writable(given.output, "--output")
    result = bundle.register(given.moving, given.fixed, **_labels(given))
    outputs = [*OUTPUTS, *["label"] * (given.moving_label is not None)]
    files = result.save(given.output, outputs, overwrite=given.overwrite)
    spent = {"seconds": time.perf_counter() - began[0], "cpu_seconds": time.process_time() - began[1]}
    figures = {"bundle": choice.bundle, "options": options, **result.figures, **spent}
    files.append(given.output / f"{name}_{RECORD}")
    write_json(files[-1], figures | provenance())
    print(f"fixed     {given.fixed}\nmoving    {given.moving}\nby        {_way(figures, choice)}")
    print("\n".join(_told(figures)))
    print("written")
    width = max(len(str(path)) for path in files)
    for path in files:
        print(f"  {str(path):{width}}  {_KINDS[path.name.removeprefix(f'{name}_')]}")


def _pair(given: argparse.Namespace) -> str:
    """Name of the pair, after what can be refused before a network is read."""
    scans = {"moving": given.moving, "fixed": given.fixed}
    moving, fixed = registration_request(".", **scans, **_labels(given)).subjects
    if given.fixed_label is not None and given.moving_label is None:
        raise InputError("--fixed_label is for the overlap with --moving_label, which was not given.")
    if given.label_groups is not None and given.fixed_label is None:
        raise InputError("--label_groups is for the Dice: give --fixed_label and --moving_label, too.")
    if given.anatomy == "brain" and read_grid(given.fixed).flat:
        raise InputError(f"{given.fixed} is 2D, and the networks for brains are for volumes: use --anatomy any.")
    if given.anatomy == "any" and given.ckpt_path is not None:
        raise InputError("--ckpt_path is for the network of --anatomy brain: --anatomy any has none.")
    name = pair_name(moving["id"], fixed["id"])
    there = sorted(given.output.glob(f"{name}_*"))
    if there and not given.overwrite:
        raise InputError(f"{there[0]} exists: choose another --output, or replace it with --overwrite true.")
    return name


def _labels(given: argparse.Namespace) -> dict[str, Any]:
    return {name: vars(given)[name] for name in ("moving_label", "fixed_label")}


def _options(choice: Choice, given: argparse.Namespace) -> dict[str, Any]:
    """Of the bundle, with what was asked for."""
    asked = {name: vars(given)[name] for name in ("affine", "io_steps", "label_groups", "label_numbering")}
    if given.spacing is not None:
        asked["spacing"] = [given.spacing] * read_grid(given.fixed).dims
    if given.ckpt_path is not None:
        asked["ckpt_path"] = given.ckpt_path
    return {**choice.options, **asked}


def _way(figures: Mapping[str, Any], choice: Choice) -> str:
    """What has registered them, in a line."""
    steps = [f"{choice.bundle} ({choice.why})"]
    if figures["options"]["affine"]:
        steps.insert(0, "affine alignment")
    if "optimisation" in figures:
        steps.append(f"{figures['optimisation']['steps']} steps of optimisation ({choice.options['similarity']})")
    return ", ".join(steps)


def _told(figures: Mapping[str, Any]) -> Iterator[str]:
    """Figures, a line each."""
    if "dice" in figures:
        names = {"header": "by header", "affine": "after the affine alignment", "registered": "registered"}
        stages = ", ".join(f"{value:.4f} {names[stage]}" for stage, value in figures["dice"].items())
        yield f"Dice      {stages} ({figures['labels']} labels)"
    yield f"folding   {figures['folded_percent']:.4f} % of the voxels"
    yield f"seconds   {figures['seconds']:.1f}, of processors {figures['cpu_seconds']:.1f}"


if __name__ == "__main__":
    run_tool(main)

# SPDX-License-Identifier: Apache-2.0
"""A BIDS app: register the scans of a BIDS data set to a template, results named as fMRIPrep names them."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from common.threads import share_cores

share_cores()

import common
from common.api import load_bundle
from common.checks import InputError
from common.cli import add_switch, run_tool, sentence_of
from common.data.bids import BidsFile, check_data_set, chosen, files_of, suffixes_of
from common.engine.bundle_folder import check_writable
from common.engine.command_line import values_of
from scripts.bids_derivative import Derivative
from scripts.bids_group import write_group_table
from scripts.bids_scan import ScanRegistration
from scripts.bids_template import Template

logger = logging.getLogger(__name__)
_DESCRIPTION = """\
Register the T1w images of each participant of a BIDS data set to a template, and bring the template's labels to them.

  python scripts/bids_app.py BIDS OUT participant --participant-label 01 02 --template TEMPLATE.nii.gz
  python scripts/bids_app.py BIDS OUT group

OUT becomes a derivative data set: docs/bids.md has its files, and how other tools apply the transforms. The same
command goes on with what is missing. A participant that fails is reported, and the others go on; the exit status is 1
then.
"""


def parser() -> argparse.ArgumentParser:
    """Options of this script."""
    options = argparse.ArgumentParser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("bids_dir", type=Path, metavar="BIDS", help="data set with the scans")
    add("output_dir", type=Path, metavar="OUT", help="data set of the results, such as BIDS/derivatives/registration")
    add("analysis_level", choices=("participant", "group"), help="register scans, or put their figures into a table")
    add(
        *("--participant-label", "--participant_label"),
        nargs="+",
        metavar="LABEL",
        help="with sub- or without; default: all participants",
    )
    add(
        *("--session-label", "--session_label"),
        nargs="+",
        metavar="LABEL",
        help="with ses- or without; default: all sessions",
    )
    add("--template", type=Path, metavar="IMAGE", help="NIfTI; the name of tpl-NAME_... is its name")
    add("--template-name", metavar="NAME", help="for space-NAME and to-NAME; default: from the file name")
    add(
        "--template-labels",
        type=Path,
        nargs="+",
        default=[],
        metavar="LABELS",
        help="label maps of the template, which become dseg of the participants; names beside them in NAME.tsv",
    )
    add("--suffix", default="T1w", help="of the scans (default: %(default)s)")
    add("--desc", help="of the scans, where the data set is a derivative; default: without desc")
    add("--bundle", default="instance_any", metavar="BUNDLE", help="name, folder or zip (default: %(default)s)")
    add(
        "--options", default="", help='options of its configs/inference.json, such as "--spacing [2,2,2] --io_steps 20"'
    )
    add_switch(options, "trust", "run the configurations and modules of a BUNDLE from elsewhere, which are code")
    add_switch(options, "overwrite", "make results anew that are there")
    add("--version", action="version", version=f"registration-bundles {common.__version__}")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    # Says that it begins and ends, for each scan.
    logging.getLogger("ignite").setLevel(logging.WARNING)
    description = check_data_set(given.bids_dir)
    check_writable(given.output_dir, "OUT")
    if given.analysis_level == "group":
        print(write_group_table(given.output_dir, given.suffix))
        return
    if given.template is None:
        raise InputError("The level participant needs --template, the image to which the scans are registered.")
    template = Template.of(given.template, given.template_name, given.template_labels)
    scans, failures = find_scans(given)
    if scans:
        options = {"affine": True, **values_of(shlex.split(given.options))}
        bundle = load_bundle(given.bundle, trust=given.trust, **options)
        derivative = Derivative(given.bids_dir, given.output_dir, template)
        derivative.begin(description, given.suffix, given.overwrite)
        failures |= register_scans(
            [ScanRegistration(scan, derivative, bundle, options, given.overwrite) for scan in scans]
        )
    report(len(scans), failures)


def find_scans(given: argparse.Namespace) -> tuple[list[BidsFile], dict[str, str]]:
    """The scans that are asked for, and a sentence for each participant without one, by ``sub-LABEL``."""
    scans: list[BidsFile] = []
    failures = {}
    sessions = None if given.session_label is None else [s.removeprefix("ses-") for s in given.session_label]
    made = {} if given.desc is None else {"desc": given.desc}
    for participant in chosen(given.bids_dir, given.participant_label):
        files = [file for file in files_of(given.bids_dir, participant, given.suffix) if file.made == made]
        found = [file for file in files if sessions is None or file.entities.get("ses") in sessions]
        prefixes = [file.prefix for file in found]
        if not found:
            failures[f"sub-{participant}"] = _nothing_found(given, participant)
        elif len(set(prefixes)) < len(prefixes):
            failures[f"sub-{participant}"] = f"{found[0].path.parent} has two files of one scan: remove one."
        else:
            scans += found
    return scans, failures


def _nothing_found(given: argparse.Namespace, participant: str) -> str:
    desc = "" if given.desc is None else f"_desc-{given.desc}"
    where = "" if given.session_label is None else f" in session {' or '.join(given.session_label)}"
    there = ", ".join(suffixes_of(given.bids_dir, participant)) or "none"
    return (
        f"{given.bids_dir / f'sub-{participant}'} has no image *{desc}_{given.suffix}.nii.gz{where}; its images are: "
        f"{there}. Choose one of these by --suffix, or leave the participant out."
    )


def register_scans(scans: Sequence[ScanRegistration]) -> dict[str, str]:
    """Register each scan; returns a sentence for each one that failed, by the begin of the names of its files."""
    failures = {}
    for number, scan in enumerate(scans, 1):
        try:
            sentence = scan.run()
        except Exception as error:  # one participant does not stop the others
            sentence = sentence_of(error)
            if sentence is None:
                logger.exception("%s", scan.name)
                sentence = f"{type(error).__name__}: {error}"
        logger.info("%d of %d: %s %s.", number, len(scans), scan.name, "is there" if sentence is None else "failed")
        if sentence is not None:
            failures[scan.name] = sentence
    return failures


def report(scans: int, failures: dict[str, str]) -> None:
    """Say what failed.

    Raises:
        InputError: there was something.
    """
    for name, sentence in failures.items():
        print(f"{name}: {sentence}", file=sys.stderr)
    if failures:
        raise InputError(f"{len(failures)} failed, see above; the results of the others are complete.")
    print(f"{scans} scan(s): all results are there.")


if __name__ == "__main__":
    run_tool(main)

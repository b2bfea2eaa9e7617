# SPDX-License-Identifier: Apache-2.0
"""Labelled phantoms of random anatomy with known deformations, for trying everything out without a download.

One smooth random anatomy (the template) is deformed by one random diffeomorphism per subject. All of it follows from
the seed. Run ``python -m common.data.shapes3d --output_dir data/shapes3d``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.checks import InputError
from common.data.made_sets import make_once, provide, save_array, save_image, split_images, write_datalist
from common.data.phantom import make_subject, make_template

_VERSION = 1
_FIELD_COMMENT = (
    "fields/*_ddf.nii.gz: true displacement of each subject, voxels, last axis = components along the array axes, "
    "pull-back: subject(x) = template(x + ddf(x)), so it registers the template (moving) to the subject (fixed)."
)


def generate_shapes3d(
    output_dir: str | Path,
    num_subjects: int = 24,
    size: Sequence[int] = (48, 56, 48),
    num_labels: int = 8,
    seed: int = 0,
    validation: int = 4,
    test: int = 4,
    progress: bool = True,
) -> Path:
    """Write a data set of phantoms for the reader "datalist".

    Args:
        output_dir: folder to make; it appears only when it is complete. A folder that this call made before is kept.
        num_subjects: number of subjects, those of validation and test included.
        size: voxels per axis, 2 or 3 numbers; spacing is 1 mm, orientation RAS.
        num_labels: number of structures, background not counted.
        seed: determines everything; equal arguments give equal arrays.
        validation: number of subjects held out for validation; all their ordered pairs are listed.
        test: number of subjects held out for the test; all their ordered pairs are listed.
        progress: whether a progress bar is shown.

    Returns:
        The folder: imagesTr, labelsTr, fields, template.nii.gz, template_label.nii.gz, dataset.json. Images are in
        [0, 1] (stored in 256 steps), labels uint8.

    Raises:
        InputError: arguments out of range, or a folder that holds something else.
    """
    arguments = {"num_subjects": num_subjects, "size": list(size), "num_labels": num_labels, "seed": seed}
    arguments |= {"validation": validation, "test": test, "version": _VERSION}
    _check_arguments(num_subjects, size, num_labels, seed, validation, test)
    return make_once(output_dir, arguments, lambda folder: _write(folder, arguments, progress))


def provide_shapes3d(dataset_dir: str | Path) -> Path:
    """Generate the default set where there is no data set yet; any data set that is there stays as it is.

    Args:
        dataset_dir: folder of the data set.

    Returns:
        The folder.

    Raises:
        InputError: as :func:`generate_shapes3d`.
    """
    return provide(dataset_dir, generate_shapes3d)


def _check_arguments(
    num_subjects: int, size: Sequence[int], num_labels: int, seed: int, validation: int, test: int
) -> None:
    if len(size) not in (2, 3) or min(size) < 16:
        raise InputError(f"The size {tuple(size)} cannot be used; give 2 or 3 numbers of 16 or more.")
    if not 2 <= num_labels <= 64:
        raise InputError(f"num_labels is {num_labels}; give a number from 2 to 64.")
    if seed < 0:
        raise InputError(f"The seed is {seed}; give a number of 0 or more.")
    if min(validation, test) < 0 or num_subjects - validation - test < 2:
        raise InputError(
            f"{num_subjects} subjects with {validation} for validation and {test} for the test leave "
            f"{num_subjects - validation - test} for training; at least two are needed."
        )


def _write(folder: Path, arguments: dict[str, Any], progress: bool) -> None:
    for name in ("imagesTr", "labelsTr", "fields"):
        (folder / name).mkdir(parents=True)
    template = make_template(tuple(arguments["size"]), arguments["num_labels"], arguments["seed"])
    save_image(folder / "template.nii.gz", template.image)
    save_array(folder / "template_label.nii.gz", template.labels)
    numbers = range(1, arguments["num_subjects"] + 1)
    for number in tqdm(numbers, desc="Generating shapes3d", disable=not progress):
        subject = make_subject(template, arguments["seed"], number)
        name = f"SHAPES_{number:04d}"
        save_image(folder / "imagesTr" / f"{name}_0000.nii.gz", subject.image)
        save_array(folder / "labelsTr" / f"{name}_0000.nii.gz", subject.labels)
        save_array(folder / "fields" / f"{name}_ddf.nii.gz", np.moveaxis(subject.ddf, 0, -1))
    write_datalist(folder, _datalist(arguments))


def _datalist(arguments: dict[str, Any]) -> dict[str, Any]:
    images = [f"./imagesTr/SHAPES_{number:04d}_0000.nii.gz" for number in range(1, arguments["num_subjects"] + 1)]
    return {
        "name": "shapes3d",
        "description": "Synthetic labelled phantoms, deformed copies of one random anatomy. " + _FIELD_COMMENT,
        "licence": "CC0: made by a program, no data of people",
        "tensorImageShape": {"0": arguments["size"]},
        "labels": {str(label): f"structure {label}" for label in range(1, arguments["num_labels"] + 1)},
        "generator": arguments,
        **split_images(images, arguments["validation"], arguments["test"]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of :func:`generate_shapes3d`."""
    parser = argparse.ArgumentParser(
        prog="python -m common.data.shapes3d",
        description="Generate labelled 3D (or 2D) phantoms with known deformations.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="folder to make, or that this command made")
    parser.add_argument("--num_subjects", type=int, default=24, help="number of subjects in all")
    parser.add_argument("--size", type=int, nargs="+", default=[48, 56, 48], help="voxels per axis, 2 or 3 numbers")
    parser.add_argument("--num_labels", type=int, default=8, help="number of structures")
    parser.add_argument("--seed", type=int, default=0, help="random seed that determines everything")
    parser.add_argument("--validation", type=int, default=4, help="subjects held out for validation")
    parser.add_argument("--test", type=int, default=4, help="subjects held out for the test")
    try:
        folder = generate_shapes3d(**vars(parser.parse_args(arguments)))
    except (InputError, OSError) as error:
        parser.exit(1, f"ERROR: {error}\n")
    print(f"{folder} is complete.")


if __name__ == "__main__":
    main()

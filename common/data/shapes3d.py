# SPDX-License-Identifier: Apache-2.0
"""Labelled phantoms of random anatomy with known deformations, for trying everything out without a download.

One smooth random anatomy (the template) is deformed by one random diffeomorphism per subject. All of it follows from
the seed. Run ``python -m common.data.shapes3d --output_dir data/shapes3d``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from common.checks import InputError
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
    output = Path(output_dir)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if _is_complete(output, arguments):
            return output
        raise InputError(
            f"{output} exists and is not the data set of these arguments; give another folder or remove this one."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as temporary:
        folder = Path(temporary) / output.name
        _write(folder, arguments, progress)
        try:
            folder.replace(output)
        except OSError:
            # Of several processes that train together one is the first.
            if not _is_complete(output, arguments):
                raise
    return output


def provide_shapes3d(dataset_dir: str | Path) -> Path:
    """Generate the default set where there is no data set yet; any data set that is there stays as it is.

    Args:
        dataset_dir: folder of the data set.

    Returns:
        The folder.

    Raises:
        InputError: as :func:`generate_shapes3d`.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        generate_shapes3d(folder)
    return folder


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


def _is_complete(folder: Path, arguments: dict[str, Any]) -> bool:
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        files = content["sha256"]
        present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {"dataset.json"}
        same = content["generator"] == arguments and present == set(files)
        return same and all(_checksum(folder / name) == value for name, value in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, arguments: dict[str, Any], progress: bool) -> None:
    for name in ("imagesTr", "labelsTr", "fields"):
        (folder / name).mkdir(parents=True)
    template = make_template(tuple(arguments["size"]), arguments["num_labels"], arguments["seed"])
    _save_image(folder / "template.nii.gz", template.image)
    _save(folder / "template_label.nii.gz", template.labels)
    numbers = range(1, arguments["num_subjects"] + 1)
    for number in tqdm(numbers, desc="Generating shapes3d", disable=not progress):
        subject = make_subject(template, arguments["seed"], number)
        name = f"SHAPES_{number:04d}"
        _save_image(folder / "imagesTr" / f"{name}_0000.nii.gz", subject.image)
        _save(folder / "labelsTr" / f"{name}_0000.nii.gz", subject.labels)
        _save(folder / "fields" / f"{name}_ddf.nii.gz", np.moveaxis(subject.ddf, 0, -1))
    content = _datalist(arguments)
    content["sha256"] = {p.relative_to(folder).as_posix(): _checksum(p) for p in sorted(folder.rglob("*.nii.gz"))}
    (folder / "dataset.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _datalist(arguments: dict[str, Any]) -> dict[str, Any]:
    images = [f"./imagesTr/SHAPES_{number:04d}_0000.nii.gz" for number in range(1, arguments["num_subjects"] + 1)]
    first_test = len(images) - arguments["test"]
    first_validation = first_test - arguments["validation"]
    sections = {
        "training": images[:first_validation],
        "validation": images[first_validation:first_test],
        "test": images[first_test:],
    }
    listed = {
        section: [{"image": image, "label": image.replace("images", "labels")} for image in members]
        for section, members in sections.items()
    }
    return {
        "name": "shapes3d",
        "description": "Synthetic labelled phantoms, deformed copies of one random anatomy. " + _FIELD_COMMENT,
        "licence": "CC0: made by a program, no data of people",
        "tensorImageShape": {"0": arguments["size"]},
        "labels": {str(label): f"structure {label}" for label in range(1, arguments["num_labels"] + 1)},
        "generator": arguments,
        **listed,
        "registration_val": list(_ordered_pairs(sections["validation"])),
        "registration_test": list(_ordered_pairs(sections["test"])),
    }


def _ordered_pairs(images: list[str]) -> Iterator[dict[str, str]]:
    return ({"fixed": fixed, "moving": moving} for fixed in images for moving in images if moving != fixed)


def _save(path: Path, array: np.ndarray) -> None:
    affine = np.eye(4)
    nib.save(nib.Nifti1Image(array, affine, dtype=array.dtype), path)


def _save_image(path: Path, image: np.ndarray) -> None:
    """In 256 steps, which the header scales back to [0, 1]: a tenth of the size of floats."""
    nifti = nib.Nifti1Image(np.round(image * 255).astype(np.uint8), np.eye(4))
    nifti.header.set_slope_inter(1 / 255, 0)
    nib.save(nifti, path)


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

# SPDX-License-Identifier: Apache-2.0
"""Folders of made data: written as a whole, by arguments that they state, and recognised by checksums."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from common.checks import InputError


def make_once(output_dir: str | Path, arguments: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """Make a folder that appears only when it is complete, unless it is there already.

    Args:
        output_dir: folder to make.
        arguments: that determine its content, as "generator" of its ``dataset.json`` states them.
        write: fills a folder, ``dataset.json`` with :func:`checksums` under "sha256" included.

    Returns:
        The folder.

    Raises:
        InputError: a folder that holds something else.
    """
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
        write(folder)
        try:
            folder.replace(output)
        except OSError:
            # Of several processes that train together one is the first.
            if not _is_complete(output, arguments):
                raise
    return output


def provide(dataset_dir: str | Path, generate: Callable[[Path], object]) -> Path:
    """Generate a default set where there is no data set yet; any data set that is there stays as it is.

    Args:
        dataset_dir: folder of the data set.
        generate: fills a folder, as :func:`make_once` does.

    Returns:
        The folder.
    """
    folder = Path(dataset_dir)
    if not folder.is_dir() or not any(folder.iterdir()):
        generate(folder)
    return folder


def write_datalist(folder: Path, content: dict[str, Any]) -> None:
    """Write ``dataset.json``, with the checksums of all images of the folder."""
    files = {p.relative_to(folder).as_posix(): _checksum(p) for p in sorted(folder.rglob("*.nii.gz"))}
    (folder / "dataset.json").write_text(json.dumps({**content, "sha256": files}, indent=1) + "\n", encoding="utf-8")


def split_images(images: Sequence[str], validation: int, test: int) -> dict[str, Any]:
    """The lists of a ``dataset.json``: the last images are the test's, those before them the validation's.

    Args:
        images: paths in the folder, with "images" where the path of the label has "labels".
        validation: number of subjects, all of whose ordered pairs are listed.
        test: the same.
    """
    first_test = len(images) - test
    first_validation = first_test - validation
    sections = {
        "training": images[:first_validation],
        "validation": images[first_validation:first_test],
        "test": images[first_test:],
    }
    listed: dict[str, Any] = {
        section: [{"image": image, "label": image.replace("images", "labels")} for image in members]
        for section, members in sections.items()
    }
    pairs = {"registration_val": sections["validation"], "registration_test": sections["test"]}
    return listed | {name: list(_ordered_pairs(members)) for name, members in pairs.items()}


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array with voxels of 1 mm."""
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write an image in [0, 1] in 256 steps, which the header scales back: a tenth of the size of floats."""
    nifti = nib.Nifti1Image(np.round(image * 255).astype(np.uint8), np.eye(4))
    nifti.header.set_slope_inter(1 / 255, 0)
    nib.save(nifti, path)


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


def _ordered_pairs(images: Sequence[str]) -> Iterator[dict[str, str]]:
    return ({"fixed": fixed, "moving": moving} for fixed in images for moving in images if moving != fixed)

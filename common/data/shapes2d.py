# SPDX-License-Identifier: Apache-2.0
"""Triangles and circles in two dimensions, filled or hollow: the made images that ICON and NePhi were shown on.

Source: L. Tian et al., "NePhi", ECCV 2024, arXiv 2309.07322; uncbiag/NePhi, ranges and order of the draws. Run
``python -m common.data.shapes2d --output_dir data/shapes2d``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from common.checks import InputError
from common.data.made_sets import make_once, provide, save_array, save_image, split_images, write_datalist

LABEL_THRESHOLD = 0.2
"""Above it an image is labelled: a filled shape with a rim, the outline of a hollow one."""
_VERSION = 1
_STEEPNESS = 40.0


class Shapes(NamedTuple):
    """Some shapes, an entry (N,) of each array for each; lengths in units of the image's side.

    Attributes:
        row: of the centre.
        column: of the centre.
        radius: of the circle, or of the one about the triangle.
        angle: radians that a triangle is turned by.
        triangle: whether it is one.
    """

    row: np.ndarray
    column: np.ndarray
    radius: np.ndarray
    angle: np.ndarray
    triangle: np.ndarray


def draw_shapes(random: np.random.RandomState, count: int) -> Shapes:
    """Shapes at random, in the published ranges and order.

    Args:
        random: NumPy's older generator, whose numbers no release of NumPy will change.
        count: how many.
    """
    row, column, radius = (random.uniform(low, high, count) for low, high in ((0.4, 0.7), (0.4, 0.7), (0.2, 0.4)))
    return Shapes(row, column, radius, random.uniform(0, 2 * math.pi, count), random.uniform(0, 1, count) > 0.5)


def draw_pairs(random: np.random.RandomState, count: int, pairs: int) -> np.ndarray:
    """Numbers (pairs, 2) of two of ``count`` shapes, which may be one and the same, as in the published static list."""
    return random.randint(0, count, (pairs, 2))


def render(shapes: Shapes, size: int, hollow: bool = False) -> np.ndarray:
    """Images of shapes.

    Args:
        shapes: N of them.
        size: pixels along each axis, the first at 0 and the last at 1.
        hollow: whether only the outline is bright.

    Returns:
        (N, size, size), float32 in [0, 1].
    """
    axis = np.linspace(0, 1, size)
    row, column, radius, angle, triangle = (values[:, None, None] for values in shapes)
    rows, columns = axis[:, None] - row, axis - column
    sector = 2 * math.pi / 3
    turned = (np.arctan2(rows, columns) + angle) % sector - sector / 2
    outline = np.where(triangle, radius * math.cos(sector / 2) / np.cos(turned), radius)
    inside = np.tanh(_STEEPNESS * (outline - np.hypot(rows, columns)))
    image: np.ndarray = (1 - inside**2 if hollow else (inside + 1) / 2).astype(np.float32)
    return image


def generate_shapes2d(
    output_dir: str | Path,
    num_subjects: int = 210,
    size: int = 128,
    hollow: bool = False,
    seed: int = 0,
    validation: int = 5,
    test: int = 5,
    progress: bool = True,
) -> Path:
    """Write a data set of shapes for the reader "datalist".

    Args:
        output_dir: folder to make; it appears only when it is complete. A folder that this call made before is kept.
        num_subjects: number of shapes, those of validation and test included.
        size: pixels along each axis; spacing is 1 mm, orientation RAS.
        hollow: whether only the outlines are bright.
        seed: determines everything; equal arguments give equal arrays.
        validation: number of shapes held out for validation; all their ordered pairs are listed.
        test: number of shapes held out for the test; all their ordered pairs are listed.
        progress: whether a progress bar is shown.

    Returns:
        The folder: imagesTr, labelsTr, dataset.json. Images are in [0, 1] (stored in 256 steps), labels uint8.

    Raises:
        InputError: arguments out of range, or a folder that holds something else.
    """
    if size < 16:
        raise InputError(f"The size {size} cannot be used; give a number of 16 or more.")
    if seed < 0:
        raise InputError(f"The seed is {seed}; give a number of 0 or more.")
    if min(validation, test) < 0 or num_subjects - validation - test < 2:
        raise InputError(
            f"{num_subjects} subjects with {validation} for validation and {test} for the test leave "
            f"{num_subjects - validation - test} for training; at least two are needed."
        )
    arguments = {"num_subjects": num_subjects, "size": size, "hollow": hollow, "seed": seed}
    arguments |= {"validation": validation, "test": test, "version": _VERSION}
    return make_once(output_dir, arguments, lambda folder: _write(folder, arguments, progress))


def provide_shapes2d(dataset_dir: str | Path) -> Path:
    """Generate the default set where there is no data set yet; any data set that is there stays as it is.

    Args:
        dataset_dir: folder of the data set.

    Returns:
        The folder.

    Raises:
        InputError: as :func:`generate_shapes2d`.
    """
    return provide(dataset_dir, generate_shapes2d)


def _write(folder: Path, arguments: dict[str, Any], progress: bool) -> None:
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    # The published set is a row of draws of this generator, which numpy calls old and keeps as it is.
    shapes = draw_shapes(np.random.RandomState(arguments["seed"]), arguments["num_subjects"])  # noqa: NPY002
    names = [f"SHAPES_{number:04d}_0000.nii.gz" for number in range(1, arguments["num_subjects"] + 1)]
    for number, name in enumerate(tqdm(names, desc="Generating shapes2d", disable=not progress)):
        one = Shapes(*(values[number : number + 1] for values in shapes))
        image = render(one, arguments["size"], arguments["hollow"])[0]
        save_image(folder / "imagesTr" / name, image)
        save_array(folder / "labelsTr" / name, (image > LABEL_THRESHOLD).astype(np.uint8))
    content = {
        "name": "shapes2d",
        "description": "Synthetic triangles and circles, which are all images of one label.",
        "licence": "CC0: made by a program, no data of people",
        "tensorImageShape": {"0": [arguments["size"]] * 2},
        "labels": {"1": "shape"},
        "generator": arguments,
        **split_images([f"./imagesTr/{name}" for name in names], arguments["validation"], arguments["test"]),
    }
    write_datalist(folder, content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of :func:`generate_shapes2d`."""
    parser = argparse.ArgumentParser(
        prog="python -m common.data.shapes2d",
        description="Generate labelled triangles and circles.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", required=True, help="folder to make, or that this command made")
    parser.add_argument("--num_subjects", type=int, default=210, help="number of shapes in all")
    parser.add_argument("--size", type=int, default=128, help="pixels along each axis")
    parser.add_argument("--hollow", action="store_true", help="make only the outlines bright")
    parser.add_argument("--seed", type=int, default=0, help="random seed that determines everything")
    parser.add_argument("--validation", type=int, default=5, help="shapes held out for validation")
    parser.add_argument("--test", type=int, default=5, help="shapes held out for the test")
    try:
        folder = generate_shapes2d(**vars(parser.parse_args(arguments)))
    except (InputError, OSError) as error:
        parser.exit(1, f"ERROR: {error}\n")
    print(f"{folder} is complete.")


if __name__ == "__main__":
    main()

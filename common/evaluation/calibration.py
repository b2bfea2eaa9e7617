# SPDX-License-Identifier: Apache-2.0
"""What an uncertainty is worth: compared with the error, where the true displacements are known."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from common.checks import InputError
from common.data.request import pair_name
from common.data.subjects import read_section
from common.io.fields import read_field
from common.io.nifti import read_grid, read_image, read_labels
from common.spatial import Grid, compose, invert
from common.spatial.lengths import lengths

Row = dict[str, "str | float"]
BINS = 20
_INVERSE_RESIDUAL = 0.05
"""Voxels that the true field of a subject and its inverse may miss each other by."""


class Calibration(NamedTuple):
    """What was found.

    Attributes:
        pairs: a row for each pair, and one of all voxels together ("pooled"): "pair", number of "voxels", rank
            correlation of uncertainty and error ("spearman"), means of both and the "error_before", in millimetres.
        bins: all voxels in order of their uncertainty, in parts of the same size, the least first: "voxels", root mean
            squares of "uncertainty" and "error", and the "mean_error".
    """

    pairs: list[Row]
    bins: list[Row]


def measure_calibration(dataset_dir: Path, results_dir: Path, section: str = "test") -> Calibration:
    """Compare uncertainties of registered phantoms with the errors that were made, where the fixed one has a label.

    The error is the distance of the displacement from the true one. In the background there is nothing to be found, and
    it does not count.

    Args:
        dataset_dir: volumes of :func:`common.data.shapes3d.generate_shapes3d`, or of
            :func:`common.data.known_fields.make_known_fields` with labels.
        results_dir: ``MOVING_to_FIXED_ddf.nii.gz`` and ``MOVING_to_FIXED_uncertainty.nii.gz`` as inference writes them.
        section: whose pairs are measured.

    Raises:
        InputError: a file is missing or of another grid, or the true fields have no inverse.
    """
    listing = read_section(dataset_dir, "datalist", section)
    rows: list[Row] = []
    found: list[np.ndarray] = []
    for pair in listing.every_pair():
        moving, fixed = (listing.subjects[number] for number in pair)
        name = pair_name(moving["id"], fixed["id"])
        values = _measure(dataset_dir, results_dir / name, moving["id"], fixed)
        rows.append({"pair": name, **_figures(*values)})
        found.append(values)
    pooled = np.concatenate(found, axis=1)
    rows.append({"pair": "pooled", **_figures(*pooled)})
    return Calibration(rows, _bins(*pooled[:2]))


def _measure(dataset_dir: Path, prefix: Path, moving: str, fixed: dict[str, str]) -> np.ndarray:
    """(3, N): uncertainty, error and error before registration of each voxel that counts, in millimetres."""
    grid = read_grid(fixed["image"])
    true = _true_field(dataset_dir, moving, fixed["id"], grid)
    ddf, _ = read_field(f"{prefix}_ddf.nii.gz", grid)
    uncertainty, _ = read_image(f"{prefix}_uncertainty.nii.gz")
    if tuple(uncertainty.shape) != grid.shape:
        raise InputError(f"{prefix}_uncertainty.nii.gz is not on the grid of {fixed['image']}; register them again.")
    sizes = ddf.new_tensor(grid.spacing).view(1, -1, 1, 1, 1)
    counted = (read_labels(fixed["label"])[0] > 0).numpy()
    lines = (uncertainty, lengths(sizes * (ddf - true))[0, 0], lengths(sizes * true)[0, 0])
    return np.stack([values.numpy()[counted] for values in lines])


def _true_field(dataset_dir: Path, moving: str, fixed: str, grid: Grid) -> Tensor:
    """From a subject to another one, by the original that both are made of."""
    true, _ = read_field(dataset_dir / "fields" / f"{fixed}_ddf.nii.gz", grid, "voxels")
    own = dataset_dir / "fields" / f"{moving}_ddf.nii.gz"
    if not own.is_file():
        # The original itself.
        return true
    back, residual = invert(read_field(own, grid, "voxels")[0])
    if float(residual.max()) > _INVERSE_RESIDUAL:
        raise InputError(f"The field {own} has no inverse: it is that of no phantom.")
    return compose(back, true)


def _figures(uncertainty: np.ndarray, error: np.ndarray, before: np.ndarray) -> Row:
    return {
        "voxels": len(error),
        "spearman": float(spearmanr(uncertainty, error).statistic),
        "uncertainty": float(uncertainty.mean()),
        "error": float(error.mean()),
        "error_before": float(before.mean()),
    }


def _bins(uncertainty: np.ndarray, error: np.ndarray) -> list[Row]:
    return [
        {
            "voxels": len(part),
            "uncertainty": float(np.sqrt(np.square(uncertainty[part]).mean())),
            "error": float(np.sqrt(np.square(error[part]).mean())),
            "mean_error": float(error[part].mean()),
        }
        for part in np.array_split(uncertainty.argsort(kind="stable"), BINS)
    ]

# SPDX-License-Identifier: Apache-2.0
"""Endpoint errors of a registration whose true displacements are known, see :mod:`common.data.known_fields`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from common.checks import InputError
from common.data.abdomen import body_mask
from common.data.known_fields import field_file
from common.data.request import pair_name
from common.data.subjects import read_section
from common.data.transforms import LoadSubjectd
from common.io.fields import read_field
from common.io.nifti import read_grid
from common.metrics.jacobian import jacobian_statistics
from common.spatial.lengths import lengths

Errors = dict[str, "str | float"]
_PERCENTILE = 95
_SHARE = 100


def measure_recovery(dataset_dir: Path, fields_dir: Path, section: str = "test") -> list[Errors]:
    """Endpoint error ``|found(x) - true(x)|`` inside the body, in voxels of the fixed scan.

    Args:
        dataset_dir: result of :func:`common.data.known_fields.make_known_fields` with a CT.
        fields_dir: fields ``MOVING_to_FIXED_ddf.nii.gz`` as inference writes them.
        section: section whose pairs are measured.

    Returns:
        One row per pair, then one of means: "fixed_id", median and 95th percentile of the error, and of the true
        displacement's length ("_before": the error of doing nothing); both medians inside the labelled structures,
        where the scan has labels; share of voxels with folding, whole scan, in percent.

    Raises:
        InputError: a field is missing or of another grid, or the scan has no body.
    """
    listing = read_section(dataset_dir, "datalist", section)
    subjects = listing.subjects
    rows: list[Errors] = []
    for moving, fixed in listing.every_pair():
        name = pair_name(subjects[moving]["id"], subjects[fixed]["id"])
        rows.append(_measure(dataset_dir, subjects[fixed], fields_dir / f"{name}_ddf.nii.gz"))
    figures = [key for key in rows[0] if key != "fixed_id"]
    mean: Errors = {figure: float(np.mean([float(row[figure]) for row in rows])) for figure in figures}
    return [*rows, {"fixed_id": "mean", **mean}]


def _measure(dataset_dir: Path, fixed: dict[str, str], field: Path) -> Errors:
    grid = read_grid(fixed["image"])
    found, _ = read_field(field, grid)
    true, _ = read_field(dataset_dir / field_file(int(fixed["id"].rpartition("_")[-1])), grid, "voxels")
    scan = LoadSubjectd()(fixed)
    body = torch.from_numpy(body_mask(scan["image"][0].numpy()))
    if not body.any():
        raise InputError(f"{fixed['image']} has no body above -300 HU; the endpoint error is measured inside it.")
    error, length = (lengths(field)[0, 0].numpy() for field in (found - true, true))
    row: Errors = {
        "fixed_id": fixed["id"],
        "median": float(np.median(error[body])),
        "median_before": float(np.median(length[body])),
        "p95": float(np.percentile(error[body], _PERCENTILE)),
        "p95_before": float(np.percentile(length[body], _PERCENTILE)),
    }
    if "label" in scan:
        labelled = scan["label"][0].numpy() != 0
        row["median_labelled"] = float(np.median(error[labelled]))
        row["median_labelled_before"] = float(np.median(length[labelled]))
    return {**row, "fold_percent": _SHARE * float(jacobian_statistics(found).fold_fraction)}

# SPDX-License-Identifier: Apache-2.0
"""One pair of a baseline: read, registered in a process of its own, checked against the package's image, written."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.data import CheckSubjectd, LoadSubjectd
from common.data.readers.datalist import load_json
from common.data.readers.listing import Subject
from common.data.request import pair_name
from common.io.nifti import write_ddf
from common.io.tables import write_json
from common.spatial import identity_grid, warp
from common.spatial.places import GRID_TOLERANCE, arrays_apart

WORKER = Path(__file__).with_name("baseline_worker.py")
# Voxels that are left out on each side (fewer where an axis is short), at both ends of a displacement: tools differ in
# what lies outside.
MARGIN = 3
# Largest difference, as a part of the moving image's range, that rounding explains; a wrong axis or sign makes ten
# times that.
TOLERANCE = 0.02


@dataclass(frozen=True)
class LoadedScan:
    """An image (*spatial) float32 with its affine (4, 4), voxels to millimetres."""

    subject: Subject
    image: Tensor
    affine: Tensor

    @property
    def spacing(self) -> list[float]:
        """Millimetres per voxel along the array axes."""
        return [float(length) for length in self.affine[:3, :3].double().norm(dim=0)]


def read_scan(subject: Subject) -> LoadedScan:
    """Load a subject's image.

    Raises:
        InputError: when it is missing, damaged, not finite, constant, or not three-dimensional.
    """
    keys = ["image"]
    data = CheckSubjectd(keys, spatial_dims=3)(LoadSubjectd(keys)(subject))
    image: Any = data["image"]
    scan = LoadedScan(subject, image.as_tensor()[0], image.affine)
    if not all(0 < length < float("inf") for length in scan.spacing):
        raise InputError(f"{subject['image']} has the voxel size {scan.spacing} in its header; correct the header.")
    return scan


def check_one_grid(moving: LoadedScan, fixed: LoadedScan) -> None:
    """Refuse a pair on two grids: the field would have no meaning in voxels.

    Raises:
        InputError: when shapes or affines differ.
    """
    names = f"{moving.subject['image']} and {fixed.subject['image']}"
    if moving.image.shape != fixed.image.shape:
        raise InputError(
            f"{names} have the shapes {tuple(moving.image.shape)} and {tuple(fixed.image.shape)}; the baselines need "
            "images on one grid: resample first."
        )
    apart = arrays_apart(fixed.image.shape, moving.affine, fixed.affine)
    if apart > GRID_TOLERANCE:
        raise InputError(
            f"By their headers {names} lie up to {apart:.3g} voxels apart; the baselines need images on one grid: "
            "resample first."
        )


def register(
    moving: LoadedScan, fixed: LoadedScan, settings: dict[str, Any], python: str
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Run the method in a process of its own.

    Args:
        moving: scan that is warped.
        fixed: scan on whose grid the field is, the same as the moving's.
        settings: "method", its "options" and the number of "threads".
        python: interpreter that has the method's package.

    Returns:
        Displacement (3, *spatial) in voxels, the moving image (*spatial) as the package warps it, and the cost:
        ``seconds``, ``cpu_seconds`` of all threads, ``peak_memory_mb`` of the process.

    Raises:
        InputError: when the package fails, with its last line.
    """
    threads = str(settings["threads"])
    limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    request = {"threads": settings["threads"], "options": settings["options"], "spacing": fixed.spacing}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            np.savez(folder / "images.npz", moving=moving.image.numpy(), fixed=fixed.image.numpy())
        except OSError as error:
            raise InputError(f"Cannot write to the temporary folder {folder}: {error.strerror}.") from error
        write_json(folder / "request.json", request)
        command = [python, str(WORKER), settings["method"], name]
        environment = {**os.environ, **dict.fromkeys(limits, threads)}
        ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if ended.returncode != 0:
            said = ended.stdout.decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(said) if line.strip()), "no output")
            raise InputError(
                f"{settings['method']} failed on {moving.subject['id']} to {fixed.subject['id']} (exit status "
                f"{ended.returncode}): {last}"
            )
        with np.load(folder / "result.npz") as result:
            ddf, warped = (torch.from_numpy(np.array(result[key])) for key in ("ddf", "warped"))
        return ddf, warped, load_json(folder / "cost.json")


def difference_to_package(moving: Tensor, ddf: Tensor, warped: Tensor) -> tuple[float, float]:
    """Largest and mean difference between our linear warp and the package's image, as parts of the moving's range.

    Only voxels count that lie ``MARGIN`` voxels inside the grid themselves and are sampled there; NaN without any.

    Args:
        moving: (*spatial).
        ddf: (3, *spatial), voxels.
        warped: (*spatial), what the package wrote.
    """
    double = torch.float64
    ours = warp(moving[None, None].to(double), ddf[None].to(double))[0, 0]
    inside = torch.ones(moving.shape, dtype=torch.bool)
    grid = identity_grid(moving.shape, dtype=double)[0]
    for axis, length in enumerate(moving.shape):
        margin = min(MARGIN, (length - 1) // 4)
        for position in (grid[axis], grid[axis] + ddf[axis]):
            inside &= (position >= margin) & (position <= length - 1 - margin)
    difference = (ours - warped.to(double)).abs()[inside] / float(moving.max() - moving.min())
    return (float(difference.max()), float(difference.mean())) if difference.numel() else (math.nan, math.nan)


def run_pair(
    moving: LoadedScan, fixed: LoadedScan, settings: dict[str, Any], output: Path, python: str
) -> dict[str, Any]:
    """Register, as :func:`register` says, check and write one pair.

    Returns:
        Its entry in the record.

    Raises:
        InputError: as :func:`register`, and when our warp by the field differs from the package's own image.
    """
    check_one_grid(moving, fixed)
    ddf, warped, cost = register(moving, fixed, settings, python)
    ids = {"moving_id": moving.subject["id"], "fixed_id": fixed.subject["id"]}
    field = f"The field of {settings['method']} for {ids['moving_id']} to {ids['fixed_id']}"
    if not bool(torch.isfinite(ddf).all()):
        raise InputError(f"{field} has NaN or infinite values: the package failed on these images; leave the pair out.")
    largest, mean = difference_to_package(moving.image, ddf, warped)
    if not largest <= TOLERANCE:
        raise InputError(
            f"{field} is not what the package applied: images warped by both differ by up to {largest:.2%} of the "
            f"range, allowed are {TOLERANCE:.0%}."
        )
    write_ddf(output / ddf_name(ids), ddf, fixed.affine)
    images = {f"{key}_sha256": digest(scan.subject) for key, scan in (("moving", moving), ("fixed", fixed))}
    return {**ids, **cost, "max_difference": largest, "mean_difference": mean, **images}


def ddf_name(ids: Mapping[str, Any]) -> str:
    """File of the pair of a "moving_id" and a "fixed_id"."""
    return f"{pair_name(ids['moving_id'], ids['fixed_id'])}_ddf.nii.gz"


def digest(subject: Subject) -> str:
    """Checksum of a subject's image file."""
    return hashlib.sha256(Path(subject["image"]).read_bytes()).hexdigest()

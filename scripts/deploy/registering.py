# SPDX-License-Identifier: Apache-2.0
"""What the operator does, without anything of MONAI Deploy's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from common.api import load_bundle
from common.checks import InputError

OUTPUTS = "transform,warped"
Volume = tuple[NDArray[Any], Mapping[str, Any]]


def selection_rules(side: str, description: str) -> str:
    """Rules of ``DICOMSeriesSelectorOperator``: CT or MR whose description holds some words.

    Args:
        side: name of the selection.
        description: regular expression, found anywhere in the SeriesDescription, in capitals or not.

    Returns:
        JSON.
    """
    conditions = {"Modality": "(?i)MR|CT", "SeriesDescription": f"(?i).*({description}).*"}
    return json.dumps({"selections": [{"name": side, "conditions": conditions}]})


def check_selection(side: str, selected: Sequence[str], there: Sequence[str]) -> None:
    """Refuse to guess which series is meant.

    Args:
        side: "fixed" or "moving".
        selected: descriptions of the series that fit the rules.
        there: those of all series.

    Raises:
        InputError: when not one series fits, with what there is.
    """
    if len(selected) != 1:
        found = ", ".join(repr(name) for name in (selected or there)) or "no series"
        problem = f"{len(selected)} series fit" if selected else "No series fits"
        raise InputError(
            f"{problem} what is asked of the {side} one; there is {found}: set REGISTRATION_{side.upper()} to words of "
            "one SeriesDescription of CT or MR."
        )


def as_image(volume: Volume, side: str) -> nib.Nifti1Image:
    """A volume of ``DICOMSeriesToVolumeOperator`` with the axes of its affine.

    Args:
        volume: voxels (slice, row, column), and metadata with ``affine``, 4 x 4, from (column, row, slice) to RAS
            millimetres.
        side: "moving" or "fixed", for the message.

    Raises:
        InputError: without an affine, or for what is no volume.
    """
    voxels, metadata = volume
    affine = metadata.get("affine")
    if affine is None or np.shape(affine) != (4, 4):
        raise InputError(f"The {side} series has no 4 x 4 affine: it is no series of slices in space; choose another.")
    if voxels.ndim != 3 or min(voxels.shape) < 2:
        raise InputError(f"The {side} series has the shape {voxels.shape}: it is no volume; choose another.")
    return nib.Nifti1Image(np.transpose(voxels, (2, 1, 0)).astype(np.float32), np.asarray(affine, dtype=np.float64))


def register_volumes(
    bundle: str,
    moving: Volume,
    fixed: Volume,
    folder: Path,
    options: Mapping[str, Any],
    outputs: str = OUTPUTS,
) -> list[Path]:
    """Register two volumes and write files.

    Args:
        bundle: folder, zip or name of a bundle; its code is trusted, as it is a part of the application.
        moving: see :func:`as_image`.
        fixed: likewise.
        folder: of the files.
        options: of the bundle's ``configs/inference.json``, by name.
        outputs: names of ``--outputs``.

    Returns:
        The files.

    Raises:
        InputError: as :func:`as_image` and :func:`common.api.load_bundle`.
    """
    images = {side: as_image(volume, side) for side, volume in (("moving", moving), ("fixed", fixed))}
    registered = load_bundle(bundle, trust=True, **options).register(**images)
    return registered.save(folder, outputs)

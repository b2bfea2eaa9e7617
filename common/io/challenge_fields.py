# SPDX-License-Identifier: Apache-2.0
"""Displacement fields as challenges take them: names, contents, and what is wrong with a file.

Sources: evaluation scripts and submission pages of Learn2Reg 2021 (OASIS) and of LUMIR (Learn2Reg 2024).
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from torch import Tensor

from common.checks import InputError
from common.io.field_checks import check_to_write, half_of
from common.io.files import write_bytes
from common.io.learn2reg import to_half_resolution
from common.io.nifti import write_ddf

NAMINGS = {"short": "disp_{fixed}_{moving}", "long": "disp_{fixed}_0000_{moving}_0000"}
"""Learn2Reg asks for the long form since February 2025, LUMIR's own script for the short one."""


class FieldFormat(ABC):
    """One challenge's form of a displacement field."""

    suffix: str

    @abstractmethod
    def write(self, path: str | Path, ddf: Tensor) -> None:
        """Write ``ddf`` (3, D, H, W), voxels of the fixed grid, whole or not at all; InputError if it is not finite."""

    @abstractmethod
    def problem(self, path: Path, shape: Sequence[int]) -> str | None:
        """What makes a file unfit for images of a shape (D, H, W), as the end of a sentence; None if it is fit."""


class FullResolution(FieldFormat):
    """LUMIR: ``.nii.gz``, (D, H, W, 3), float32, voxels of the full grid, identity affine."""

    suffix = ".nii.gz"

    def write(self, path: str | Path, ddf: Tensor) -> None:
        """Write the field as it is."""
        check_to_write(path, ddf)
        write_ddf(path, ddf, torch.eye(4))

    def problem(self, path: Path, shape: Sequence[int]) -> str | None:
        """As in the base class."""
        try:
            file = nibabel.load(path)
            values = np.asanyarray(file.dataobj)
        except Exception as error:  # whatever a damaged file makes the reader raise
            return f"cannot be read ({type(error).__name__})"
        if not np.array_equal(file.affine, np.eye(4)):
            return "has an affine other than the identity"
        return _problem(values, (*shape, 3), np.float32)


class HalfResolution(FieldFormat):
    """OASIS of Learn2Reg 2021: ``.npz`` with ``arr_0``, (3, D/2, H/2, W/2), float16, voxels of the full grid."""

    suffix = ".npz"

    def write(self, path: str | Path, ddf: Tensor) -> None:
        """Write the field resampled to half the size, its values as they are."""
        content = io.BytesIO()
        with np.errstate(over="ignore"):
            half = to_half_resolution(ddf.numpy(), mode="nearest")
        check_to_write(path, torch.from_numpy(half))
        np.savez(content, half)
        write_bytes(path, content.getvalue())

    def problem(self, path: Path, shape: Sequence[int]) -> str | None:
        """As in the base class."""
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except Exception as error:  # zip, header and object arrays each have their own
            return f"cannot be read ({type(error).__name__})"
        if list(arrays) != ["arr_0"]:
            return f"holds {', '.join(arrays) or 'nothing'} in place of arr_0"
        return _problem(arrays["arr_0"], (3, *half_of(tuple(shape))), np.float16)


FORMATS: dict[str, FieldFormat] = {"lumir": FullResolution(), "oasis": HalfResolution()}


def field_name(challenge: str, moving: Mapping[str, str], fixed: Mapping[str, str], naming: str = "short") -> str:
    """Name of a pair's field, such as ``disp_3455_3454.nii.gz``; the challenges put the fixed image first.

    Args:
        challenge: a key of :data:`FORMATS`.
        moving: subject {"id", "image"} whose id ends in the four digits of the challenge.
        fixed: the same.
        naming: a key of :data:`NAMINGS`.

    Raises:
        InputError: for another challenge or naming, or an image whose name has no such number.
    """
    if challenge not in FORMATS or naming not in NAMINGS:
        raise InputError(
            f"There is no submission {challenge!r} with {naming!r} names; challenges are {', '.join(FORMATS)}, names "
            f"{' or '.join(NAMINGS)}."
        )
    numbers = {"fixed": _number(fixed), "moving": _number(moving)}
    return NAMINGS[naming].format(**numbers) + FORMATS[challenge].suffix


def _number(subject: Mapping[str, str]) -> str:
    match = re.search(r"(?:^|_)(\d{4})$", subject["id"])
    if match is None:
        raise InputError(
            f"The image {subject['image']} is not named NAME_NNNN_0000.nii.gz, but the files of a submission are named "
            "after these four digits; rename it as in the challenge's release."
        )
    return match.group(1)


def _problem(values: np.ndarray, shape: tuple[int, ...], dtype: type[np.floating]) -> str | None:
    if values.shape != shape:
        return f"has the shape {values.shape} in place of {shape}"
    if values.dtype != dtype:
        return f"holds {values.dtype} in place of {np.dtype(dtype)}"
    # The sum is finite where all is, and costs no second volume.
    if not np.isfinite(values.sum(dtype=np.float64)):
        return "holds NaN or infinite values"
    return None

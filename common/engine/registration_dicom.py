# SPDX-License-Identifier: Apache-2.0
"""Results of a registered pair of DICOM series as DICOM: warped labels as SEG, the transform as REG."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from common.checks import InputError
from common.engine.registration import Registration
from common.io.dicom_files import dicom_place
from common.io.dicom_registration import SUFFIX, write_registration
from common.io.dicom_seg import write_seg
from common.io.dicom_series import Series, read_series
from common.spatial.transform import Field

NEEDED = {"seg": ("fixed",), "reg": ("fixed", "moving")}
"""Of the outputs that are DICOM, the scans that have to be."""


def check_series(outputs: Collection[str], moving: str, fixed: str) -> None:
    """Refuse outputs in DICOM of scans that are not.

    Args:
        outputs: names of what is going to be written.
        moving: path of the moving scan.
        fixed: path of the fixed scan.

    Raises:
        InputError: naming the scan.
    """
    scans = {"moving": moving, "fixed": fixed}
    for output in NEEDED:
        for side in NEEDED[output] if output in outputs else ():
            if dicom_place(scans[side]) is None:
                raise _refusal(output, side, scans[side])


def write_label_seg(result: Registration, prefix: str) -> Iterator[Path]:
    """Write the warped label map as a segmentation of the fixed series; nothing without a label map."""
    if result.warped_label is not None:
        path = Path(f"{prefix}_warped_label_seg{SUFFIX}")
        write_seg(path, result.warped_label[0], _series(result, "seg", "fixed"), result.label_names)
        yield path


def write_reg(result: Registration, prefix: str) -> Iterator[Path]:
    """Write the transform as a Deformable Spatial Registration in the study of the fixed series."""
    fixed, moving = (_series(result, "reg", side).datasets for side in NEEDED["reg"])
    path = Path(f"{prefix}_transform_reg{SUFFIX}")
    write_registration(path, Field(result.fixed, result.ddf), result.alignment, fixed, moving)
    yield path


def _series(result: Registration, output: str, side: str) -> Series:
    path = str(result.pair[f"path_{side}"])
    place = dicom_place(path)
    if place is None:
        raise _refusal(output, side, path)
    return read_series(*place)


def _refusal(output: str, side: str, path: str) -> InputError:
    return InputError(
        f"The output {output} needs a DICOM series as {side} scan, but {path} is none: give the folder of the series, "
        f"or leave {output} out of --outputs."
    )

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
from common.io.dicom_source import check_source
from common.spatial.transform import Field

NEEDED = {"seg": ("fixed",), "reg": ("fixed", "moving")}
"""Of the outputs that are DICOM, the scans that have to be."""


def check_series(outputs: Collection[str], moving: str, fixed: str) -> None:
    """Refuse outputs in DICOM of scans that are not, or to which no object can refer.

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
            check_source(_series(output, side, scans[side]).datasets, side)


def write_label_seg(result: Registration, prefix: str) -> Iterator[Path]:
    """Write the warped label map as a segmentation of the fixed series; nothing without a label map."""
    if result.warped_label is not None:
        path = Path(f"{prefix}_warped_label_seg{SUFFIX}")
        series = _series("seg", "fixed", str(result.pair["path_fixed"]))
        write_seg(path, result.warped_label[0], series, result.label_names)
        yield path


def write_reg(result: Registration, prefix: str) -> Iterator[Path]:
    """Write the transform as a Deformable Spatial Registration in the study of the fixed series."""
    fixed, moving = (_series("reg", side, str(result.pair[f"path_{side}"])).datasets for side in NEEDED["reg"])
    path = Path(f"{prefix}_transform_reg{SUFFIX}")
    write_registration(path, Field(result.fixed, result.ddf), result.alignment, fixed, moving)
    yield path


def _series(output: str, side: str, path: str) -> Series:
    place = dicom_place(path)
    if place is None:
        raise InputError(
            f"The output {output} needs a DICOM series as {side} scan, but {path} is none: give the folder of the "
            f"series, or leave {output} out of --outputs."
        )
    return read_series(*place)

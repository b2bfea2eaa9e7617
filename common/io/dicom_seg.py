# SPDX-License-Identifier: Apache-2.0
"""Segmentation objects of DICOM: a label map on the grid of the series that it belongs to.

The segments are binary, one bit per voxel and segment, frames without any left out: 3D Slicer, OHIF, dcmqi and what
stands on them read it, while label maps as one image (LABELMAP, of 2024) few do. Segments are numbered from 1, in the
order of the labels' values, as the standard wants; the value itself stands in the segment's description. highdicom and
pydicom are imported when they are needed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

import common
from common.checks import InputError
from common.io.dicom_source import check_source, equipment, take_over
from common.io.files import first_line, replacing

if TYPE_CHECKING:
    from common.io.dicom_series import Series

_SERIES_NUMBER = 9001
_LONGEST = 64
"""Characters of a segment's label."""
_MOST = 65535
"""Segments of an object."""
_TURN = math.pi * (3 - math.sqrt(5))
"""From the hue of a segment to that of the next one: the golden angle, by which no two come near each other."""
_LEFT_OUT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""What highdicom takes for granted and checks; headers may be without it, or have it as no standard knows it."""


def read_label_names(path: str | Path | None) -> dict[int, str]:
    """Names of labels, {"17": "left hippocampus"} in a JSON file.

    Args:
        path: of the file; None for no names.

    Returns:
        Name of each label value; empty without a file.

    Raises:
        InputError: when the file is missing or holds something else.
    """
    if path is None:
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        names = {int(value): name for value, name in content.items()}
    except FileNotFoundError:
        raise InputError(f"The file of label names {path} does not exist; check the name.") from None
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f'The file of label names {path} is not a JSON of the form {{"17": "left hippocampus"}} '
            f"({first_line(error)})."
        ) from error
    for value, name in names.items():
        if not (isinstance(name, str) and 0 < len(name.strip()) <= _LONGEST and name.isascii() and name.isprintable()):
            raise InputError(
                f"The file of label names {path} has {name!r} for label {value}: in DICOM it may have {_LONGEST} "
                "characters, letters without accents, digits, blanks and signs."
            )
    # A backslash separates values.
    return {value: name.strip().replace("\\", "/") for value, name in names.items()}


def write_seg(path: str | Path, label: Tensor, series: Series, names: Mapping[int, str] | None = None) -> None:
    """Write a label map as a segmentation in the study of the series on whose grid it lies.

    Args:
        path: ends in .dcm.
        label: (1, *series.shape), integers of any size; 0 is background.
        series: whose patient and study are kept, and to whose images the segmentation refers.
        names: of labels; one without a name is called "label VALUE".

    Raises:
        InputError: when the map has no label, the series lacks UIDs, or the file cannot be written.
    """
    check_source(series.datasets, "fixed")
    values = label.detach().cpu().numpy()[0]
    if values.shape != series.shape:
        raise ValueError(f"A label map of {values.shape} does not lie on a series of {series.shape}.")
    found, numbers = np.unique(values, return_inverse=True)
    present = [int(value) for value in found if value != 0]
    if not present:
        raise InputError(f"{path} is not written: the label map is empty, and a segmentation has one segment or more.")
    if len(present) > _MOST:
        raise InputError(f"{path} is not written: the label map has {len(present)} labels, too many for DICOM.")
    numbering = np.zeros(len(found), dtype=np.uint16)
    numbering[found != 0] = np.arange(1, len(present) + 1)
    segments = numbering[numbers].reshape(values.shape)
    target = _segmentation(segments, _descriptions(present, names or {}), series)
    take_over(target, series.datasets)
    with replacing(path) as temporary:
        target.save_as(temporary, enforce_file_format=True)


def _segmentation(segments: np.ndarray, descriptions: list[Any], series: Series) -> Any:
    """The object; segments are (columns, rows, slices), numbered from 1."""
    import highdicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    first, affine = series.frames[0], series.affine
    thickness = float(abs(np.cross(*first.axes) @ (affine[:3, 2] * [-1, -1, 1])))
    with warnings.catch_warnings():
        # Of slices that are tilted, and of names that are no names: both are as the series has them.
        warnings.simplefilter("ignore")
        return highdicom.seg.Segmentation(
            source_images=_tolerable(series.datasets, thickness),
            pixel_array=segments.transpose(2, 1, 0),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=generate_uid(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            content_label="WARPED_LABELS",
            content_description="labels of the moving scan, warped onto the fixed series",
            series_description="warped labels",
            transfer_syntax_uid=ExplicitVRLittleEndian,
            specific_character_set=None,
            pixel_measures=highdicom.PixelMeasuresSequence(first.sides[::-1].tolist(), thickness, thickness),
            plane_orientation=highdicom.PlaneOrientationSequence("PATIENT", first.axes.ravel().tolist()),
            plane_positions=[
                highdicom.PlanePositionSequence("PATIENT", frame.place.tolist()) for frame in series.frames
            ],
            **equipment(),
        )


def _tolerable(datasets: Sequence[Any], thickness: float) -> list[Any]:
    """Headers that highdicom takes: copies without what is brought over as it is in the end (:func:`take_over`).

    ``thickness`` of slices is for those that do not state it; what is written is that of the grid.
    """
    from pydicom.datadict import dictionary_VR
    from pydicom.dataset import Dataset

    copies = []
    for dataset in datasets:
        header = Dataset()
        header.update(dataset)
        for name in _LEFT_OUT:
            # A new element: those of the copy are those of the header.
            header.add_new(name, dictionary_VR(name), None)
        if not header.get("SliceThickness"):
            header.add_new("SliceThickness", "DS", thickness)
        copies.append(header)
    return copies


def _descriptions(values: Sequence[int], names: Mapping[int, str]) -> list[Any]:
    """One description per label, numbered from 1."""
    import highdicom
    from pydicom.sr.codedict import codes

    method = highdicom.AlgorithmIdentificationSequence(
        name=equipment()["manufacturer_model_name"], family=codes.DCM.DeformableModels, version=common.__version__
    )
    found = []
    for number, value in enumerate(values, start=1):
        description = highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=names.get(value, f"label {value}"),
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.AnatomicalStructure,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=method,
            display_color=highdicom.color.CIELabColor(
                65.0, 60 * math.cos(_TURN * number), 60 * math.sin(_TURN * number)
            ),
        )
        description.SegmentDescription = f"label {value}"
        found.append(description)
    return found

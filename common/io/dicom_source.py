# SPDX-License-Identifier: Apache-2.0
"""What a DICOM object made of a series takes over from it, and what it says of itself.

Patient and study are those of the series, attribute by attribute: what was removed there stays removed, and nothing is
added to it. What the standard wants and the series lacks is there without a value (type 2). pydicom and highdicom are
imported when they are needed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

import common
from common.checks import InputError

TO_RCS = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
"""RAS, the world of this project, to LPS, the reference coordinate system (RCS) of DICOM; and back."""
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
_KEPT = ("SpecificCharacterSet", "TimezoneOffsetFromUTC", "LongitudinalTemporalInformationModified")
"""Beside patient and study: what their letters and dates mean."""
_NAME = "registration bundles for MONAI"
# It tells of every module that it copies.
logging.getLogger("highdicom").setLevel(logging.WARNING)


def equipment() -> dict[str, Any]:
    """What made the object, as :class:`highdicom.base.SOPClass` takes it; a program has no serial number."""
    return {
        "manufacturer": _NAME,
        "manufacturer_model_name": _NAME,
        "software_versions": common.__version__,
        "device_serial_number": "none",
    }


def check_source(datasets: Sequence[Any], what: str) -> None:
    """Refuse a series to which no object can refer.

    Args:
        datasets: headers of its instances, :class:`pydicom.Dataset`.
        what: it is, for the message.

    Raises:
        InputError: when an instance lacks one of the UIDs, or is of a kind that is not of the standard.
    """
    for dataset in datasets:
        missing = next((name for name in _NEEDED if not dataset.get(name)), None)
        if missing is not None:
            raise InputError(
                f"The {what} series has an instance without {missing}, so that no DICOM object can refer to it: leave "
                "seg and reg out of --outputs."
            )
        if dataset.SOPClassUID.is_private:
            raise InputError(
                f"The {what} series is of a vendor's own kind ({dataset.SOPClassUID}), to which no object "
                "of the standard refers: leave seg and reg out of --outputs."
            )


def take_over(target: Any, datasets: Sequence[Any]) -> None:
    """Make patient and study of an object those of a series, value by value, as they are in its first header.

    Args:
        target: the object, :class:`highdicom.base.SOPClass`; changed in place.
        datasets: headers of the series.
    """
    source = datasets[0]
    target.copy_patient_and_study_information(source)
    for name in _KEPT:
        if name in source:
            target[name] = source[name]


def references(datasets: Sequence[Any]) -> list[Any]:
    """One item of the Image SOP Instance Reference macro for each instance of a series."""
    from pydicom.dataset import Dataset

    items = []
    for dataset in datasets:
        item = Dataset()
        item.ReferencedSOPClassUID = dataset.SOPClassUID
        item.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
        items.append(item)
    return items


def refer_to(target: Any, several: Sequence[Sequence[Any]]) -> None:
    """Add the Common Instance Reference module: all series that an object speaks of, by study.

    Args:
        target: the object, with its StudyInstanceUID; changed in place.
        several: headers of each series.
    """
    from pydicom.dataset import Dataset

    studies: dict[str, dict[str, Any]] = {}
    for datasets in several:
        item = Dataset()
        item.SeriesInstanceUID = datasets[0].SeriesInstanceUID
        item.ReferencedInstanceSequence = references(datasets)
        # A series that is registered to itself is one series.
        studies.setdefault(str(datasets[0].StudyInstanceUID), {})[str(item.SeriesInstanceUID)] = item
    own = studies.pop(str(target.StudyInstanceUID), {})
    if own:
        target.ReferencedSeriesSequence = [*own.values()]
    others = []
    for uid, series in studies.items():
        study = Dataset()
        study.StudyInstanceUID = uid
        study.ReferencedSeriesSequence = [*series.values()]
        others.append(study)
    if others:
        target.StudiesContainingOtherReferencedInstancesSequence = others

# SPDX-License-Identifier: Apache-2.0
"""Series of DICOM slices made from arrays, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

MR = "1.2.840.10008.5.1.4.1.1.4"
STUDY = "1.2.826.0.1.3680043.8.498.1"


def write_series(
    folder: Path, values: np.ndarray, affine: np.ndarray, series: str = "1.2.3.4", **changes: Any
) -> list[Path]:
    """Files of one slice each, in an order that is none of the slices, with names without an ending.

    Args:
        folder: made if need be.
        values: (columns, rows, slices), int16 or uint16.
        affine: (4, 4), RAS+ millimetres; its third axis may lead anywhere.
        series: SeriesInstanceUID.
        changes: elements of each header, by keyword; functions are called with the number of the slice.

    Returns:
        The files by slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    sides = np.linalg.norm(lps[:3, :2], axis=0)
    names = np.random.default_rng(0).permutation(values.shape[2])
    paths = []
    for number in range(values.shape[2]):
        header = _header(series, values.dtype.kind == "i")
        header.Columns, header.Rows = values.shape[:2]
        header.ImagePositionPatient = _texts(lps[:3, 2] * number + lps[:3, 3])
        header.ImageOrientationPatient = _texts((lps[:3, :2] / sides).T.ravel())
        header.PixelSpacing = _texts(sides[::-1])
        header.InstanceNumber = number + 1
        header.PixelData = np.ascontiguousarray(values[:, :, number].T).tobytes()
        for name, value in changes.items():
            setattr(header, name, value(number) if callable(value) else value)
        paths.append(folder / f"{series.rpartition('.')[-1]}_{names[number]:04d}")
        save(header, paths[-1])
    return paths


def _header(series: str, is_signed: bool) -> Dataset:
    header = Dataset()
    header.SOPClassUID, header.SOPInstanceUID = MR, generate_uid()
    header.StudyInstanceUID, header.SeriesInstanceUID = STUDY, series
    header.FrameOfReferenceUID = f"{STUDY}.1"
    header.PatientName, header.PatientID = "Doe^Jo", "7"
    header.Modality, header.SeriesDescription = "MR", f"series {series.rpartition('.')[-1]}"
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated = header.BitsStored = 16
    header.HighBit, header.PixelRepresentation = 15, int(is_signed)
    return header


def _texts(numbers: np.ndarray) -> list[str]:
    """As scanners write them, in sixteen characters at most."""
    return [f"{number:.10g}"[:16] for number in numbers]


def save(header: Dataset, path: Path, syntax: str = ExplicitVRLittleEndian) -> None:
    """Write a data set as a file."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    meta.TransferSyntaxUID = UID(syntax)
    FileDataset(path, header, file_meta=meta, preamble=bytes(128)).save_as(path)


def changed(path: Path, **changes: Any) -> None:
    """Replace elements of a file."""
    dataset = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(dataset, name, value)
    dataset.save_as(path)

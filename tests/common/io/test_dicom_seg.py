# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from torch import Tensor

from common.checks import InputError
from common.io.dicom_seg import read_label_names, write_seg
from common.io.dicom_series import Series, read_series
from tests.dicom_slices import changed, write_series

LAS = np.array([[-1.1, 0, 0, 5], [0, 1.3, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
TURN = np.array([[0.36, 0.48, -0.8, 0], [-0.8, 0.6, 0, 0], [0.48, 0.64, 0.6, 0], [0, 0, 0, 1.0]])
TILT = LAS.copy()
TILT[1, 2] = 1.0
AFFINES = {"LAS": LAS, "oblique": TURN @ LAS, "sagittal": LAS[:, [1, 2, 0, 3]], "tilted": TILT}
VALUES = {-7: 1, 41: 2, 614454277: 3}
"""Number of the segment of each label."""


def series(folder: Path, affine: NDArray[np.float64], **changes: Any) -> Series:
    write_series(folder, np.zeros((7, 6, 5), np.uint16), affine, **changes)
    return read_series(folder)


def label() -> Tensor:
    found = torch.zeros(1, 7, 6, 5, dtype=torch.int64)
    found[0, 2:5, 3:6, 1:4], found[0, 5:7, 1:3, 2:4], found[0, 1, 1, 3] = 41, 614454277, -7
    return found


def numbers() -> NDArray[np.int64]:
    """Segments in place of labels."""
    found = label()[0].numpy()
    return np.sum([(found == value) * number for value, number in VALUES.items()], axis=0)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES.keys())
def test_every_voxel_lies_where_the_label_map_has_it(tmp_path: Path, affine: NDArray[np.float64]) -> None:
    scan = series(tmp_path / "scan", affine)
    write_seg(tmp_path / "seg.dcm", label(), scan)
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    masks = np.unpackbits(np.frombuffer(found.PixelData, np.uint8), bitorder="little")
    masks = masks[: len(found.PerFrameFunctionalGroupsSequence) * 42].reshape(-1, 6, 7)
    again = np.zeros((7, 6, 5), np.int64)
    for mask, group in zip(masks, found.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float) * [-1, -1, 1]
        column, row, number = np.linalg.solve(scan.affine, [*place, 1])[:3].round(6)
        assert (column, row) == (0, 0)
        again[:, :, int(number)] += mask.T.astype(int) * group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert source == scan.datasets[int(number)].SOPInstanceUID
    np.testing.assert_array_equal(again, numbers())
    shared = found.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    # Decimal strings of ten digits.
    np.testing.assert_allclose(orientation, scan.frames[0].axes.ravel(), atol=1e-9)
    spacing = [float(value) for value in shared.PixelMeasuresSequence[0].PixelSpacing]
    np.testing.assert_allclose(spacing, scan.frames[0].sides[::-1])


def test_segments_have_names_numbers_and_values(tmp_path: Path) -> None:
    write_seg(tmp_path / "seg.dcm", label(), series(tmp_path / "scan", LAS), {41: "left putamen", 9: "not there"})
    found = pydicom.dcmread(tmp_path / "seg.dcm").SegmentSequence
    assert [(item.SegmentNumber, item.SegmentLabel, item.SegmentDescription) for item in found] == [
        (1, "label -7", "label -7"),
        (2, "left putamen", "label 41"),
        (3, "label 614454277", "label 614454277"),
    ]
    assert len({tuple(item.RecommendedDisplayCIELabValue) for item in found}) == 3


def test_frames_of_an_enhanced_object_are_found_by_their_places(tmp_path: Path) -> None:
    order = [3, 0, 4, 1, 2]
    with_place = [item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 2 * slice_])]) for slice_ in order]
    orientation, measures = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0]), item(PixelSpacing=[1.5, 1.2])
    (path,) = write_series(tmp_path / "scan", np.zeros((7, 6, 1), np.uint16), LAS)
    changed(
        path,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.4.1",
        NumberOfFrames=5,
        SharedFunctionalGroupsSequence=[
            item(PlaneOrientationSequence=[orientation], PixelMeasuresSequence=[measures]),
        ],
        PerFrameFunctionalGroupsSequence=with_place,
    )
    # A label for each slice.
    slices = torch.arange(5).expand(1, 7, 6, 5)
    write_seg(tmp_path / "seg.dcm", slices, read_series(tmp_path / "scan"))
    found = pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence
    for group in found:
        label_ = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        assert group.PlanePositionSequence[0].ImagePositionPatient == [0, 0, 2 * label_]
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedFrameNumber == 1 + order.index(label_)
    assert len(found) == 4


def item(**elements: Any) -> Dataset:
    found = Dataset()
    for name, value in elements.items():
        setattr(found, name, value)
    return found


# Times of old files have colons.
@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")
def test_who_and_what_is_the_series(tmp_path: Path) -> None:
    hidden = {"PatientName": "", "PatientID": "X1", "PatientSex": "U", "PatientIdentityRemoved": "YES"}
    named = {"DeidentificationMethod": "by hand", "PatientComments": "太郎", "StudyTime": "12:30"}
    letters = {"SpecificCharacterSet": ["", "ISO 2022 IR 87"]}
    scan = series(tmp_path / "scan", LAS, **hidden, **named, **letters)
    write_seg(tmp_path / "seg.dcm", label(), scan)
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    for name, value in (hidden | named | letters).items():
        assert found[name].value == value
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert found[name].value == scan.datasets[0][name].value
    assert not found.PatientBirthDate and not found.AccessionNumber and not found.get("ContentCreatorName")
    assert found.SeriesInstanceUID != scan.uid and not any(element.tag.is_private for element in found.iterall())
    assert {item.SeriesInstanceUID for item in found.ReferencedSeriesSequence} == {scan.uid}
    # The headers that were read are as they were.
    assert "PatientBirthDate" not in scan.datasets[0] and scan.datasets[0].PatientSex == "U"


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    scan = series(tmp_path / "scan", LAS)
    with pytest.raises(InputError, match="the label map is empty"):
        write_seg(tmp_path / "seg.dcm", torch.zeros(1, 7, 6, 5, dtype=torch.int64), scan)
    del scan.datasets[0].StudyInstanceUID
    with pytest.raises(InputError, match="without StudyInstanceUID"):
        write_seg(tmp_path / "seg.dcm", label(), scan)
    assert not (tmp_path / "seg.dcm").exists()


def test_names_are_read_from_a_table(tmp_path: Path) -> None:
    table = tmp_path / "names.json"
    table.write_text(json.dumps({"41": " left putamen", "-7": "a\\b"}))
    assert read_label_names(table) == {41: "left putamen", -7: "a/b"}
    assert read_label_names(None) == {}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist"),
        ("[1]", "is not a JSON of the form"),
        ('{"a": "b"}', "is not a JSON of the form"),
        ('{"4": 5}', "has 5 for label 4"),
        ('{"4": "Größe"}', "letters without accents"),
        (json.dumps({"4": "x" * 65}), "64 characters"),
    ],
)
def test_a_faulty_table_is_refused(tmp_path: Path, content: str | None, sentence: str) -> None:
    table = tmp_path / "names.json"
    if content is not None:
        table.write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_label_names(table)


def test_highdicom_reads_the_label_map_again(tmp_path: Path) -> None:
    scan = series(tmp_path / "scan", TURN @ LAS)
    write_seg(tmp_path / "seg.dcm", label(), scan)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    found = placed(np.asarray(volume.array), np.diag([-1.0, -1, 1, 1]) @ volume.affine, scan)
    np.testing.assert_array_equal(found, numbers())


def test_dciodvfy_finds_no_fault(tmp_path: Path) -> None:
    verify = shutil.which("dciodvfy")
    if verify is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    write_seg(tmp_path / "seg.dcm", label(), series(tmp_path / "scan", LAS), {41: "left putamen"})
    said = subprocess.run([verify, tmp_path / "seg.dcm"], capture_output=True, text=True, check=False)
    assert "Error" not in said.stderr + said.stdout and "Segmentation" in said.stderr


def test_dcmqi_reads_the_label_map_again(tmp_path: Path) -> None:
    convert = shutil.which("segimage2itkimage")
    if convert is None:
        pytest.skip("dcmqi is not installed: pip install dcmqi")
    scan = series(tmp_path / "scan", TURN @ LAS)
    write_seg(tmp_path / "seg.dcm", label(), scan, {41: "left putamen"})
    options = ["--inputDICOM", "seg.dcm", "--outputDirectory", ".", "-t", "nifti", "--mergeSegments"]
    # Its libraries are its own.
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([convert, *options], cwd=tmp_path, env=alone, check=True, capture_output=True)
    file = nibabel.load(tmp_path / "1.nii.gz")
    np.testing.assert_array_equal(placed(np.asarray(file.dataobj), file.affine, scan), numbers())
    (described,) = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]
    assert [item["SegmentLabel"] for item in described] == ["label -7", "left putamen", "label 614454277"]


def placed(array: NDArray[Any], affine: NDArray[Any], scan: Series) -> NDArray[np.int64]:
    """Non-zero voxels of a part of the scan's grid, in any order of axes, at their indices there."""
    found = np.zeros(scan.shape, np.int64)
    inside = np.argwhere(array)
    world = inside @ affine[:3, :3].T + affine[:3, 3]
    indices = (world - scan.affine[:3, 3]) @ np.linalg.inv(scan.affine[:3, :3]).T
    # Voxels, from positions in decimal strings.
    np.testing.assert_allclose(indices, indices.round(), atol=1e-4)
    found[tuple(indices.round().astype(int).T)] = array[tuple(inside.T)]
    return found

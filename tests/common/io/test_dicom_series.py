# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import MediaStorageDirectoryStorage

from common.checks import InputError
from common.io.dicom_series import read_series
from tests.dicom_slices import changed, write_series

VALUES = np.random.default_rng(1).integers(-500, 1500, (7, 6, 5)).astype(np.int16)
LAS = np.array([[-1.1, 0, 0, 5], [0, 1.3, 0, -7], [0, 0, 2.5, 11], [0, 0, 0, 1.0]])
TURN = np.array([[0.36, 0.48, -0.8, 0], [-0.8, 0.6, 0, 0], [0.48, 0.64, 0.6, 0], [0, 0, 0, 1.0]])
"""A rotation of round numbers."""
TILT = LAS.copy()
TILT[1, 2] = 1.0


def places(affine: np.ndarray, values: np.ndarray) -> dict[tuple[float, ...], float]:
    """The value at each place of the world, whatever the order of the axes."""
    indices = np.indices(values.shape).reshape(3, -1)
    world = (affine[:3, :3] @ indices).T + affine[:3, 3]
    return {tuple(place.round(3) + 0.0): value for place, value in zip(world, values.ravel(), strict=True)}


@pytest.mark.parametrize("affine", [LAS, TURN @ LAS, LAS[:, [1, 2, 0, 3]], TILT], ids=["LAS", "oblique", "sag", "tilt"])
def test_every_value_lies_where_it_was_written(tmp_path: Path, affine: np.ndarray) -> None:
    files = write_series(tmp_path, VALUES, affine)
    series = read_series(tmp_path)
    assert places(series.affine, series.voxels) == places(affine, VALUES)
    assert series.shape == series.voxels.shape and series.voxels.dtype == np.float32 and series.uid == "1.2.3.4"
    assert {header.filename for header in series.datasets} == {str(file) for file in files}
    assert not any("PixelData" in header for header in series.datasets)


@pytest.mark.parametrize("affine", [LAS, TURN @ LAS, LAS[:, [1, 2, 0, 3]]], ids=["LAS", "oblique", "sag"])
def test_array_and_affine_are_those_of_itk(tmp_path: Path, affine: np.ndarray) -> None:
    write_series(tmp_path, VALUES, affine)
    series = read_series(tmp_path)
    names = itk.GDCMSeriesFileNames.New(Directory=str(tmp_path))
    reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(
        FileNames=names.GetFileNames("1.2.3.4"), ImageIO=itk.GDCMImageIO.New()
    )
    reader.Update()
    image = reader.GetOutput()
    np.testing.assert_array_equal(series.voxels, itk.array_from_image(image).transpose(2, 1, 0))
    axes = itk.array_from_matrix(image.GetDirection()) * np.array(image.GetSpacing())
    # Headers have ten digits.
    np.testing.assert_allclose(series.affine[:3, :3], np.diag([-1, -1, 1]) @ axes, atol=1e-8)
    np.testing.assert_allclose(series.affine[:3, 3], np.array(image.GetOrigin()) * [-1, -1, 1], atol=1e-8)


def test_shear_of_a_tilted_gantry_is_kept(tmp_path: Path) -> None:
    write_series(tmp_path, VALUES, TILT)
    series = read_series(tmp_path)
    # Sums of products of float64.
    np.testing.assert_allclose(np.abs(series.affine[:3, 2]), [0, 1, 2.5], atol=1e-8)
    assert series.tilt == pytest.approx(np.degrees(np.arctan(1 / 2.5)))


def test_each_slice_has_a_scale_of_its_own(tmp_path: Path) -> None:
    write_series(tmp_path, VALUES, LAS, RescaleSlope=lambda k: k + 1, RescaleIntercept=lambda k: -10.5 * k)
    # The normal of LAS runs down, against the number of the slice.
    wanted = (VALUES * np.arange(1, 6) - 10.5 * np.arange(5))[:, :, ::-1]
    np.testing.assert_array_equal(read_series(tmp_path).voxels, wanted.astype(np.float32))


@pytest.mark.parametrize(("modality", "is_turned"), [("MR", True), ("CT", False)])
def test_black_for_white_is_turned_where_values_are_no_units(tmp_path: Path, modality: str, is_turned: bool) -> None:
    write_series(tmp_path, VALUES, LAS, PhotometricInterpretation="MONOCHROME1", Modality=modality)
    wanted = int(VALUES.min()) + int(VALUES.max()) - VALUES.astype(int) if is_turned else VALUES
    np.testing.assert_array_equal(read_series(tmp_path).voxels, wanted[:, :, ::-1])


def test_one_of_several_series_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "a", VALUES, LAS)
    write_series(tmp_path / "b", VALUES + np.int16(1), LAS, "1.2.3.5", SeriesDescription="other")
    with pytest.raises(
        InputError, match=r"holds 2 DICOM series, 1\.2\.3\.4 \(series 4, 5 files\), 1\.2\.3\.5 \(other,"
    ):
        read_series(tmp_path)
    with pytest.raises(InputError, match=r"no images of the series 1\.2\.3, but 1\.2\.3\.4 \("):
        read_series(tmp_path, "1.2.3")
    np.testing.assert_array_equal(read_series(tmp_path, "1.2.3.5").voxels, VALUES[:, :, ::-1] + 1)


def test_other_files_of_a_folder_do_not_count(tmp_path: Path) -> None:
    files = write_series(tmp_path, VALUES, LAS)
    write_series(tmp_path / "segmentation", VALUES, LAS, "1.2.3.5", Modality="SEG")
    shutil.copy(files[0], tmp_path / "copy")
    shutil.copy(files[0], tmp_path / ".hidden")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty.dcm").write_bytes(b"")
    directory = pydicom.dcmread(files[0])
    directory.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    directory.save_as(tmp_path / "DICOMDIR")
    assert read_series(tmp_path).shape == (7, 6, 5)


def again(folder: Path, **changes: Any) -> None:
    write_series(folder / "again", VALUES, LAS, **changes)


def every(folder: Path, **changes: Any) -> None:
    for path in folder.iterdir():
        changed(path, **changes)


def rid(folder: Path, kept: int) -> None:
    for path in sorted(folder.iterdir())[kept:]:
        path.unlink()


def cut(folder: Path, tag: bytes) -> None:
    """Leave out an element of a file and all behind it."""
    path = folder / "4_0001"
    path.write_bytes(path.read_bytes().partition(tag)[0])


def one(folder: Path, **changes: Any) -> None:
    changed(sorted(folder.iterdir())[2], **changes)


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing slice": (lambda f: (f / "4_0000").unlink(), r"1 slice\(s\) .*missing.* lie 5 mm apart, others 2\.5 mm"),
    "an uneven step": (
        lambda f: write_series(f, VALUES, LAS, ImagePositionPatient=lambda k: [-5, 7, 11 + 2.5 * k + 0.7 * (k == 2)]),
        r"do not lie evenly: .* 1\.8 to 3\.2 mm.*0\.7 mm off",
    ),
    "another size": (lambda f: one(f, Rows=3, PixelData=bytes(42)), r"have 2 sizes.*1 of 5, such as .*4_0002"),
    "another orientation": (lambda f: one(f, ImageOrientationPatient=[1, 0, 0, 0, 0, 1]), "have 2 orientations"),
    "other pixels": (lambda f: one(f, PixelSpacing=[1, 1]), "have 2 pixel sizes"),
    "a localiser": (lambda f: one(f, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "holds a localiser"),
    "two echoes": (lambda f: again(f, EchoTime=80), r"2 images at each place.*differ in EchoTime \(None, 80\.0\)"),
    "no position": (lambda f: one(f, ImagePositionPatient=None), "4_0002 does not state its ImagePositionPatient"),
    "skewed axes": (lambda f: one(f, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "not at right angles"),
    "colours": (lambda f: one(f, SamplesPerPixel=3), "holds colours"),
    "many images": (lambda f: one(f, NumberOfFrames=2), "4_0002 holds 2 images and does not say where"),
    "a table": (lambda f: one(f, ModalityLUTSequence=[Dataset()]), "numbers of a table"),
    "no image": (lambda f: every(f, Modality="SR"), "no DICOM images but SR"),
    "nothing": (lambda f: rid(f, 0), "is a folder without DICOM images"),
    "one slice": (lambda f: rid(f, 1), "a single slice"),
    "half a header": (lambda f: cut(f, b"\x20\x00\x0e\x00UI"), "4_0001 is cut short, its header ends early"),
    "most of a header": (lambda f: cut(f, b"\x28\x00\x10\x00US"), "4_0001 is cut short, or no image of its series"),
    "half an image": (lambda f: one(f, PixelData=bytes(40)), "The pixels of .*4_0002 are damaged or cut short"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_volume_is_refused(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    write_series(tmp_path, VALUES, LAS)
    spoil(tmp_path)
    with pytest.raises(InputError, match=message):
        read_series(tmp_path).voxels  # noqa: B018 - decoded when asked for

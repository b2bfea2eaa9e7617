# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import itk
import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import UID, HTJ2KLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from common.checks import InputError
from common.io.apply import Chain, warp_file
from common.io.dicom_series import read_series
from tests.dicom_slices import write_series

VALUES = np.random.default_rng(1).integers(0, 1500, (8, 6, 3)).astype(np.uint16)
"""The normal of the identity leads from slice to slice."""


def compress(path: Path, syntax: UID) -> None:
    dataset = pydicom.dcmread(path)
    if syntax != JPEGLosslessSV1:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        # pydicom has no encoder for it: the pixels come from a file that ITK writes.
        written = path.with_suffix(".dcm")
        picture = itk.image_from_array(dataset.pixel_array[None])
        io = itk.GDCMImageIO.New(CompressionType=itk.GDCMImageIOEnums.Compression_JPEG)
        itk.ImageFileWriter.New(picture, FileName=str(written), ImageIO=io, UseCompression=True).Update()
        packed = pydicom.dcmread(written)
        written.unlink()
        assert packed.file_meta.TransferSyntaxUID == syntax
        dataset.file_meta.TransferSyntaxUID, dataset.PixelData = syntax, packed.PixelData
        dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEGLosslessSV1])
def test_compressed_pixels_have_the_values_and_scale_of_others(tmp_path: Path, syntax: UID) -> None:
    for path in write_series(tmp_path, VALUES, np.eye(4), RescaleSlope=2, RescaleIntercept=-7):
        compress(path, syntax)
    np.testing.assert_array_equal(read_series(tmp_path).voxels, VALUES * 2.0 - 7)


def test_a_compression_that_nothing_here_decodes_is_named(tmp_path: Path) -> None:
    path = write_series(tmp_path, VALUES, np.eye(4))[0]
    compress(path, RLELossless)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(path)
    with pytest.raises(InputError, match=r"The pixels of .* are compressed as High-Throughput JPEG 2000.*dcmconv"):
        read_series(tmp_path).voxels  # noqa: B018 - decoded when asked for


def test_a_series_is_warped_and_is_a_reference(tmp_path: Path) -> None:
    write_series(tmp_path / "scan", VALUES, np.eye(4))
    write_series(tmp_path / "label", VALUES % 3, np.eye(4), "1.2.3.5")
    for name, is_label in (("scan", False), ("label", True)):
        target = tmp_path / f"{name}.nii.gz"
        warp_file(tmp_path / name, target, Chain([], None), tmp_path / "scan", is_label)
        file = nibabel.load(target)
        # Of float32 in the interpolation.
        np.testing.assert_allclose(np.asarray(file.dataobj), VALUES % 3 if is_label else VALUES, atol=2e-3)
        np.testing.assert_array_equal(file.affine, np.eye(4))
        assert file.get_data_dtype() == (np.int32 if is_label else np.float32)

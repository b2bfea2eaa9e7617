# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.io.nifti import read_grid, read_image, read_labels, write_ddf, write_image

AFFINE = torch.tensor([[0, -2, 0, 5], [1, 0, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1]], dtype=torch.float64)


def test_image_and_header_come_back(tmp_path: Path) -> None:
    image = torch.rand(1, 4, 5, 6)
    write_image(tmp_path / "a.nii.gz", image, AFFINE)
    file: Any = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(file.get_fdata(dtype=np.float32), image[0].numpy())
    np.testing.assert_allclose(file.affine, AFFINE.numpy())


def test_another_reader_sees_the_same_grid(tmp_path: Path) -> None:
    image = torch.rand(1, 4, 5, 6)
    write_image(tmp_path / "a.nii", image, AFFINE)
    file = itk.imread(str(tmp_path / "a.nii"))
    np.testing.assert_array_equal(itk.array_from_image(file).T, image[0].numpy())
    # ITK's world is LPS, NIfTI's is RAS: the first two axes change sign.
    np.testing.assert_allclose(list(file.GetOrigin()), [-5, -7, -9])
    np.testing.assert_allclose(list(file.GetSpacing()), [1, 2, 3])


def test_components_of_a_field_are_the_last_axis(tmp_path: Path) -> None:
    ddf = torch.rand(3, 4, 5, 6)
    write_ddf(tmp_path / "a.nii.gz", ddf, AFFINE)
    file: Any = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(file.get_fdata(dtype=np.float32), ddf.movedim(0, -1).numpy())


def test_the_same_result_is_the_same_file(tmp_path: Path) -> None:
    image = torch.rand(1, 4, 5, 6)
    write_image(tmp_path / "a.nii.gz", image, AFFINE)
    write_image(tmp_path / "b.nii.gz", image, AFFINE)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint64])
def test_label_maps_of_64_bits_become_int32(tmp_path: Path, dtype: torch.dtype) -> None:
    label = torch.arange(120).view(1, 4, 5, 6).to(dtype)
    write_image(tmp_path / "a.nii.gz", label, AFFINE)
    file: Any = nibabel.load(tmp_path / "a.nii.gz")
    assert file.get_data_dtype() == np.int32
    np.testing.assert_array_equal(np.asarray(file.dataobj), label[0].numpy())


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mha: images and fields are written as \.nii\.gz or \.nii"):
        write_ddf(tmp_path / "a.mha", torch.zeros(3, 4, 5, 6), AFFINE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (4, 1), (4, 5, 6, 1, 1)])
def test_an_image_is_read_with_its_affine_whatever_its_axes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape, np.float32)
    nibabel.save(nibabel.Nifti1Image(values, AFFINE.numpy()), tmp_path / "a.nii.gz")
    image, affine = read_image(tmp_path / "a.nii.gz")
    assert image.dtype == torch.float32 and image.is_contiguous()
    np.testing.assert_array_equal(image.numpy(), values.reshape(shape[:3]))
    expected = AFFINE.clone()
    if len(shape) == 2:
        # In two dimensions there is no height.
        expected[2], expected[:3, 2] = torch.eye(4)[2], torch.eye(4)[:3, 2]
    torch.testing.assert_close(affine, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint64, np.float32, np.float64])
@pytest.mark.parametrize("top", [200, 256, 32767])
def test_labels_of_every_type_become_the_smallest_integers(tmp_path: Path, dtype: Any, top: int) -> None:
    if top > 255 and dtype is np.uint8:
        top = 255
    values = np.zeros((3, 4, 5), dtype)
    values[0, 1, 2], values[2, 3, 4] = 1, top
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    labels, _ = read_labels(tmp_path / "a.nii")
    assert labels.dtype == (torch.uint8 if top <= 255 else torch.int16)
    np.testing.assert_array_equal(labels.numpy(), values.astype(np.int64))


@pytest.mark.parametrize("value", [0.4, np.nan, np.inf, 1e30])
def test_what_is_no_label_is_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((3, 4, 5), np.float64 if isinstance(value, float) else np.int64)
    values[1, 2, 3] = value
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=values.dtype), tmp_path / "a.nii")
    with pytest.raises(InputError, match=r"label map .*a\.nii has values"):
        read_labels(tmp_path / "a.nii")


def unusable(folder: Path, fault: str) -> Path:
    path = folder / ("a.mha" if fault == "kind" else "a.nii.gz")
    values = np.zeros((4, 5, 6, 2) if fault == "series" else (4, 5, 6), np.float32)
    file = nibabel.Nifti1Image(values, np.eye(4))
    if fault == "folder":
        path.mkdir()
    elif fault in ("kind", "header", "dicom"):
        path.write_bytes(bytes(128) + b"DICM" if fault == "dicom" else b"no image")
    elif fault != "absent":
        nibabel.save(file, path)
    return path


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("absent", "does not exist"), ("folder", "is a folder without DICOM"), ("kind", "neither .nii nor .nii.gz"),
        ("header", "cannot be read as NIfTI"), ("dicom", "is a DICOM file"),
        ("series", r"has shape \(4, 5, 6, 2\)"),
    ],
)  # fmt: skip
def test_every_reader_says_the_same_about_a_file(tmp_path: Path, fault: str, message: str) -> None:
    path = unusable(tmp_path, fault)
    sentences = []
    for read in (read_grid, read_image, read_labels):
        with pytest.raises(InputError, match=message) as error:
            read(path)
        sentences.append(str(error.value).partition(", but")[0])
    assert len(set(sentences)) == 1


def test_files_that_are_cut_short_or_coloured_are_named(tmp_path: Path) -> None:
    write_image(tmp_path / "cut.nii.gz", torch.rand(1, 20, 20, 20), AFFINE)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "cut.nii.gz").read_bytes()[:3000])
    with pytest.raises(InputError, match=r"cut\.nii\.gz is damaged or cut short"):
        read_image(tmp_path / "cut.nii.gz")
    colours = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii")
    with pytest.raises(InputError, match=r"rgb\.nii holds colours"):
        read_image(tmp_path / "rgb.nii")

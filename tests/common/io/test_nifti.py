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
from common.io.nifti import write_ddf, write_image

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


def test_labels_beyond_int32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.nii\.gz: its values go beyond 2147483647"):
        write_image(tmp_path / "a.nii.gz", torch.full((1, 2, 2, 2), 2**31), AFFINE)
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mha: images and fields are written as \.nii\.gz or \.nii"):
        write_ddf(tmp_path / "a.mha", torch.zeros(3, 4, 5, 6), AFFINE)
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import torch

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

# SPDX-License-Identifier: Apache-2.0
"""What is written, read by nibabel and the definition of each tool's form."""

from __future__ import annotations

from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.io.formats.fsl import fsl_frame
from common.io.formats.writer import FORMS, write_as
from common.io.transforms import read_transform


def ddf_of(scene: Any) -> Tensor:
    to_voxels = np.linalg.inv(scene.fixed.affine.numpy())
    voxels = scene.positions @ to_voxels[:3, :3].T + to_voxels[:3, 3]
    index = np.stack(np.meshgrid(*map(np.arange, scene.fixed.shape), indexing="ij"), -1)
    return torch.from_numpy((voxels - index).transpose(3, 0, 1, 2))[None].float()


def fsl(grid: Any, world: np.ndarray) -> np.ndarray:
    frame = (fsl_frame(grid) @ torch.linalg.inv(grid.affine)).numpy()
    return world @ frame[:3, :3].T + frame[:3, 3]


def test_every_form_holds_what_its_tool_expects(scene: Any) -> None:
    shift, position = scene.positions - scene.places, scene.positions
    expected = {
        "itk": ((1, 3), 1007, b"", shift * (-1, -1, 1)),
        "voxels": ((3,), 0, b"voxels", ddf_of(scene)[0].numpy().transpose(1, 2, 3, 0)),
        "niftyreg": ((1, 3), 1007, b"NREG_TRANS", position),
        "spm": ((1, 3), 1007, b"Mapping", position),
        "fsl": ((3,), 2006, b"", fsl(scene.moving, position) - fsl(scene.fixed, scene.places)),
        "freesurfer": ((1, 3), 1006, b"", shift),
        "mrtrix": ((3,), 0, b"", position),
    }
    assert set(expected) == set(FORMS)
    for form, (axes, intent, name, values) in expected.items():
        path = scene.folder / f"{form}.nii.gz"
        write_as(path, form, ddf_of(scene), scene.fixed, scene.moving)
        file: Any = nibabel.load(path)
        assert file.shape == (*scene.fixed.shape, *axes), form
        assert int(file.header["intent_code"]) == intent and file.header["intent_name"].item() == name, form
        assert float(file.header["intent_p1"]) == 0
        np.testing.assert_allclose(file.affine, scene.fixed.affine, atol=1e-5)
        np.testing.assert_allclose(np.asarray(file.dataobj).reshape(values.shape), values, atol=3e-4, err_msg=form)
        back = read_transform(path, scene.fixed, "auto", scene.moving)
        np.testing.assert_allclose(scene.found(back), position, atol=3e-4, err_msg=form)


def test_what_cannot_be_written(scene: Any) -> None:
    with pytest.raises(InputError, match="There is no form 'ants'; choose one of itk"):
        write_as(scene.folder / "a.nii.gz", "ants", ddf_of(scene), scene.fixed)
    with pytest.raises(InputError, match="needs both of its scans"):
        write_as(scene.folder / "a.nii.gz", "fsl", ddf_of(scene), scene.fixed)
    with pytest.raises(InputError, match=r"written as .nii.gz or .nii"):
        write_as(scene.folder / "a.mgz", "freesurfer", ddf_of(scene), scene.fixed)
    assert list(scene.folder.iterdir()) == []

# SPDX-License-Identifier: Apache-2.0
"""Fields and transforms of two dimensions as files, beside what ITK makes of them."""

from __future__ import annotations

from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.io.fields import read_field
from common.io.formats.writer import write_as
from common.io.nifti import write_ddf
from common.io.transforms import Affine, Field, Transform, read_transform, write_displacement, write_transform
from common.spatial import Grid
from common.spatial.plane import lifted_field

SHAPE = (12, 9)


def grid() -> Grid:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:2, :2] = torch.tensor([[-0.96, 0.42], [0.72, 0.56]])
    affine[:2, 3] = torch.tensor([5.0, -7.0])
    return Grid.of(SHAPE, affine)


def field(seed: int = 0) -> Tensor:
    return lifted_field(torch.randn(1, 2, *SHAPE, generator=torch.Generator().manual_seed(seed)), 2)


def shear() -> Tensor:
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[0.9, 0.2], [-0.1, 1.1]])
    matrix[:2, 3] = torch.tensor([2.0, -3.0])
    return matrix


def test_a_transform_is_one_of_two_dimensions_for_itk(tmp_path: Path) -> None:
    transform = Transform((Field(grid(), field()), Affine(shear())))
    write_transform(tmp_path / "t.h5", transform)
    (theirs,) = itk.transformread(str(tmp_path / "t.h5"))
    assert theirs.GetInputSpaceDimension() == 2
    again = read_transform(tmp_path / "t.h5", grid())
    voxels = torch.tensor([[4.0, 5, 0, 1], [7.25, 2.5, 0, 1]], dtype=torch.float64)
    points = (voxels @ grid().affine.T)[:, :3]
    ours = transform.points(points)
    torch.testing.assert_close(again.points(points), ours, rtol=0, atol=1e-5)
    assert again.flat and ours[:, 2].eq(0).all()
    for point, moved in zip(points.tolist(), ours.tolist(), strict=True):
        np.testing.assert_allclose(theirs.TransformPoint([-point[0], -point[1]]), [-moved[0], -moved[1]], atol=1e-4)


def test_fields_come_back_from_every_form(tmp_path: Path) -> None:
    ddf = field()
    write_displacement(tmp_path / "d.nii.gz", ddf, grid())
    write_ddf(tmp_path / "v.nii.gz", ddf[0, :2, ..., 0], grid().affine)
    np.save(tmp_path / "v.npy", ddf[0, :2, ..., 0].numpy())
    np.save(tmp_path / "last.npy", ddf[0, :2, ..., 0].movedim(0, -1).numpy())
    vectors = itk.imread(str(tmp_path / "d.nii.gz"))
    assert vectors.GetImageDimension() == 2 and vectors.GetNumberOfComponentsPerPixel() == 2
    itk.imwrite(vectors, str(tmp_path / "d.nrrd"))
    for name in ("d.nii.gz", "v.nii.gz", "v.npy", "last.npy", "d.nrrd"):
        found, _ = read_field(tmp_path / name, grid())
        torch.testing.assert_close(found, ddf, rtol=0, atol=1e-5)
    for name in ("d.nii.gz", "v.nii.gz", "d.nrrd"):
        (stage,) = read_transform(tmp_path / name).stages
        assert isinstance(stage, Field) and stage.grid.flat and stage.grid.same_as(grid())


def test_splines_of_two_dimensions_are_sampled(tmp_path: Path) -> None:
    spline = itk.BSplineTransform[itk.D, 2, 3].New()
    spline.SetTransformDomainOrigin([-12.0, -2.0])
    spline.SetTransformDomainPhysicalDimensions([20.0, 20.0])
    spline.SetTransformDomainMeshSize([3, 3])
    parameters = itk.OptimizerParameters[itk.D](spline.GetNumberOfParameters())
    values = np.random.default_rng(0).normal(size=spline.GetNumberOfParameters())
    for n, value in enumerate(values):
        parameters[n] = float(value)
    spline.SetParameters(parameters)
    itk.transformwrite(spline, str(tmp_path / "s.tfm"))
    ddf, _ = read_field(tmp_path / "s.tfm", grid())
    place = grid().affine @ torch.tensor([4.0, 3, 0, 1], dtype=torch.float64)
    moved = grid().affine[:2, :2] @ ddf[0, :2, 4, 3, 0].double() + place[:2]
    theirs = spline.TransformPoint([-float(place[0]), -float(place[1])])
    np.testing.assert_allclose((-moved).tolist(), list(theirs), atol=1e-4)


def test_dimensions_that_do_not_fit_are_named(tmp_path: Path) -> None:
    volume = Grid.of((*SHAPE, 4), grid().affine)
    write_transform(tmp_path / "flat.h5", Transform((Affine(shear()),), flat=True))
    write_transform(tmp_path / "volume.h5", Transform((Affine(shear()),)))
    nibabel.save(nibabel.Nifti1Image(np.zeros((*SHAPE, 1, 3), np.float32), grid().affine.numpy()), tmp_path / "3.nii")
    for name, fixed, message in (
        ("flat.h5", volume, "a transform in 2D, but the fixed image is 3D"),
        ("volume.h5", grid(), "a transform in 3D, but the fixed image is 2D"),
        ("3.nii", grid(), "two numbers per pixel"),
    ):
        for read in (read_field, read_transform):
            with pytest.raises(InputError, match=f"{name} .*{message}"):
                read(tmp_path / name, fixed)
    with pytest.raises(InputError, match="Fields of two dimensions are written as itk or voxels, not as 'fsl'"):
        write_as(tmp_path / "f.nii", "fsl", field(), grid(), grid())

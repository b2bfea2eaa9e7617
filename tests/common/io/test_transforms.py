# SPDX-License-Identifier: Apache-2.0
"""What is written is checked with independent readers: ITK, and SimpleITK and ANTs where they are installed."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.checks import InputError
from common.io.header_forms import set_world
from common.io.nifti import write_ddf
from common.io.transforms import (
    Affine,
    Field,
    Transform,
    read_grid,
    read_transform,
    write_displacement,
    write_transform,
)
from common.metrics import dice_l2r
from common.spatial import Grid, displacement_to_moving, resize_image, warp_labels, warp_within

DATA = Path(__file__).parents[4] / "shared" / "data"
OUTSIDE = -3.0
LPS = torch.tensor([-1.0, -1, 1], dtype=torch.float64)
MATRIX = torch.tensor(
    [[1.05, 0.1, 0, 3.1], [-0.08, 0.953, 0.05, -2.03], [0, 0.02, 1.1, 4], [0, 0, 0, 1]], dtype=torch.float64
)


def placed(
    rotation: tuple[float, float, float], spacing: tuple[float, float, float], centre: Tensor, shape: Any
) -> Grid:
    """A grid about a centre; negative spacings flip axes."""
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() * spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    return Grid(shape, affine)


CENTRE = torch.tensor([31.3, -17.7, 64.1], dtype=torch.float64)
FIXED = {
    "oblique": placed((20, -15, 10), (1.8, 1.2, 2.4), CENTRE, (16, 20, 12)),
    "flipped": placed((0, 0, 0), (-1.5, -1.7, 2.0), CENTRE, (18, 16, 14)),
    "turned": placed((90, 0, 90), (1.3, -2.1, 1.9), CENTRE, (15, 14, 17)),
}
MOVING = placed((-8, 12, 5), (-2.0, 1.4, 1.6), CENTRE + 1.5, (17, 19, 18))


def smooth(shape: tuple[int, int, int], size: float = 0.7, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * resize_image(torch.randn(1, channels, *[max(2, n // 4) for n in shape], generator=generator), shape)


def chain(fixed: Grid) -> Transform:
    return Transform((Field(fixed, smooth(fixed.shape)), Affine(MATRIX)))


def save(path: Path, image: Tensor, grid: Grid) -> Path:
    file: Any = nibabel.Nifti1Image(image[0, 0].numpy(), None)
    set_world(file, grid.affine.numpy())
    nibabel.save(file, path)
    return path


def ours(image: Tensor, moving: Grid, fixed: Grid, transform: Transform) -> np.ndarray:
    place = displacement_to_moving(moving, fixed, transform.ddf(fixed))
    return warp_within(image, place, outside=OUTSIDE)[0, 0].numpy()


def scans(folder: Path, fixed: Grid) -> tuple[Path, Path, Tensor]:
    image = smooth(MOVING.shape, 1, 1, seed=1)
    return (
        save(folder / "f.nii.gz", torch.zeros(1, 1, *fixed.shape), fixed),
        save(folder / "m.nii.gz", image, MOVING),
        image,
    )


def resampled_by_itk(fixed: Path, moving: Path, transform: Any) -> np.ndarray:
    images = [itk.imread(str(path), itk.F) for path in (fixed, moving)]
    result = itk.resample_image_filter(
        images[1],
        transform=transform,
        use_reference_image=True,
        reference_image=images[0],
        default_pixel_value=OUTSIDE,
    )
    return itk.array_from_image(result).T


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert (expected != OUTSIDE).mean() > 0.3
    assert np.abs(found - expected).max() < 2e-4


@pytest.mark.parametrize("kind", FIXED)
def test_itk_resamples_with_our_transform_as_we_do(tmp_path: Path, kind: str) -> None:
    grid = FIXED[kind]
    fixed, moving, image = scans(tmp_path, grid)
    write_transform(tmp_path / "t.h5", chain(grid))
    (transform,) = itk.transformread(str(tmp_path / "t.h5"))
    assert_same(resampled_by_itk(fixed, moving, transform), ours(image, MOVING, grid, chain(grid)))


@pytest.mark.parametrize("kind", FIXED)
def test_itk_resamples_with_our_displacements_as_we_do(tmp_path: Path, kind: str) -> None:
    grid = FIXED[kind]
    fixed, moving, image = scans(tmp_path, grid)
    write_displacement(tmp_path / "t.nii.gz", chain(grid).ddf(grid), grid)
    single = itk.imread(str(tmp_path / "t.nii.gz"))
    array = itk.array_view_from_image(single).astype(np.float64)
    field = itk.image_view_from_array(array, ttype=itk.Image[itk.Vector[itk.D, 3], 3])
    for name in ("Origin", "Spacing", "Direction"):
        getattr(field, f"Set{name}")(getattr(single, f"Get{name}")())
    transform = itk.DisplacementFieldTransform[itk.D, 3].New()
    transform.SetDisplacementField(field)
    assert_same(resampled_by_itk(fixed, moving, transform), ours(image, MOVING, grid, chain(grid)))


@pytest.mark.parametrize("kind", FIXED)
def test_simpleitk_resamples_with_our_transform_as_we_do(tmp_path: Path, kind: str) -> None:
    sitk = pytest.importorskip("SimpleITK")
    grid = FIXED[kind]
    fixed, moving, image = scans(tmp_path, grid)
    write_transform(tmp_path / "t.h5", chain(grid))
    write_displacement(tmp_path / "t.nii.gz", chain(grid).ddf(grid), grid)
    field = sitk.DisplacementFieldTransform(sitk.ReadImage(str(tmp_path / "t.nii.gz"), sitk.sitkVectorFloat64))
    images = [sitk.ReadImage(str(path)) for path in (moving, fixed)]
    for transform in (sitk.ReadTransform(str(tmp_path / "t.h5")), field):
        result = sitk.GetArrayFromImage(sitk.Resample(*images, transform, sitk.sitkLinear, OUTSIDE)).T
        assert_same(result, ours(image, MOVING, grid, chain(grid)))


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("name", ["t.h5", "t.nii.gz"])
def test_ants_resamples_with_our_transform_as_we_do(tmp_path: Path, kind: str, name: str) -> None:
    ants = pytest.importorskip("ants")
    grid = FIXED[kind]
    fixed, moving, image = scans(tmp_path, grid)
    write_transform(tmp_path / "t.h5", chain(grid))
    write_displacement(tmp_path / "t.nii.gz", chain(grid).ddf(grid), grid)
    images = [ants.image_read(str(path)) for path in (fixed, moving)]
    result = ants.apply_transforms(*images, [str(tmp_path / name)], interpolator="linear", defaultvalue=OUTSIDE)
    assert_same(result.numpy(), ours(image, MOVING, grid, chain(grid)))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data pack is not beside the repository")
def test_itk_resamples_real_scans_in_their_own_frames_as_we_do(tmp_path: Path) -> None:
    paths = []
    for person in ("1000", "1107"):
        scan: Any = nibabel.load(DATA / "brain" / "native" / f"MALF_{person}_t1.nii.gz")
        paths.append(tmp_path / f"{person}.nii.gz")
        nibabel.save(scan.slicer[40:90, 60:120, 50:95], paths[-1])
    fixed, moving = (read_grid(path) for path in paths)
    centres = [
        g.affine[:3, :3] @ (torch.tensor(g.shape, dtype=torch.float64) / 2) + g.affine[:3, 3] for g in (fixed, moving)
    ]
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = MATRIX[:3, :3]
    matrix[:3, 3] = centres[1] - matrix[:3, :3] @ centres[0]
    transform = Transform((Field(fixed, smooth(fixed.shape)), Affine(matrix)))
    write_transform(tmp_path / "t.h5", transform)
    (read,) = itk.transformread(str(tmp_path / "t.h5"))
    file: Any = nibabel.load(paths[1])
    image = torch.from_numpy(file.get_fdata(dtype=np.float32))[None, None]
    found, expected = resampled_by_itk(paths[0], paths[1], read), ours(image, moving, fixed, transform)
    assert (expected != OUTSIDE).mean() > 0.5
    # Grey values go to some hundreds: relative to them, as above.
    assert np.abs(found - expected).max() < 2e-4 * float(image.max())


# Reading


def test_what_is_written_is_read(tmp_path: Path) -> None:
    grid = FIXED["oblique"]
    write_transform(tmp_path / "t.h5", chain(grid))
    field, affine = read_transform(tmp_path / "t.h5").stages
    assert isinstance(field, Field) and isinstance(affine, Affine)
    assert field.grid.same_as(grid, 1e-9)
    torch.testing.assert_close(field.ddf, smooth(grid.shape), atol=1e-6, rtol=0)
    torch.testing.assert_close(affine.matrix, MATRIX, atol=1e-6, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_sheared_grids_survive_in_a_transform(tmp_path: Path) -> None:
    affine = FIXED["oblique"].affine.clone()
    affine[0, 1] += 0.4
    grid = Grid((8, 9, 10), affine)
    transform = Transform((Field(grid, smooth(grid.shape)),))
    write_transform(tmp_path / "t.h5", transform)
    (field,) = read_transform(tmp_path / "t.h5").stages
    assert isinstance(field, Field) and field.grid.same_as(grid, 1e-6)
    (read,) = itk.transformread(str(tmp_path / "t.h5"))
    point = affine[:3, :3] @ torch.tensor([3.3, 4.2, 5.1], dtype=torch.float64) + affine[:3, 3]
    moved = torch.tensor(list(read.TransformPoint((point * LPS).tolist())), dtype=torch.float64) * LPS
    torch.testing.assert_close(moved, transform.points(point[None])[0], atol=1e-5, rtol=0)


def test_an_empty_chain_is_written_as_identity(tmp_path: Path) -> None:
    write_transform(tmp_path / "t.h5", Transform(()))
    (affine,) = read_transform(tmp_path / "t.h5").stages
    assert isinstance(affine, Affine)
    torch.testing.assert_close(affine.matrix, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("suffix", [".h5", ".hdf5", ".tfm", ".txt", ".mat"])
@pytest.mark.parametrize("kind", ["AffineTransform", "Euler3DTransform", "TranslationTransform"])
def test_linear_transforms_of_itk(tmp_path: Path, suffix: str, kind: str) -> None:
    transform = getattr(itk, kind)[(itk.D, 3) if kind != "Euler3DTransform" else itk.D].New()
    if kind == "AffineTransform":
        transform.SetMatrix(itk.matrix_from_array(MATRIX[:3, :3].numpy()))
        transform.SetCenter([4, 5, 6])
        transform.SetTranslation([1, 2, 3])
    elif kind == "Euler3DTransform":
        transform.SetCenter([4, 5, 6])
        transform.SetRotation(0.1, -0.2, 0.3)
    else:
        transform.SetOffset([1, 2, 3])
    path = tmp_path / f"t{suffix}"
    itk.transformwrite(transform, str(path))
    points = 10 * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [list(transform.TransformPoint(point)) for point in (points * LPS).tolist()]
    found = read_transform(path).points(points) * LPS
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


def test_several_transforms_of_one_file_are_applied_last_first(tmp_path: Path) -> None:
    composition = itk.CompositeTransform[itk.D, 3].New()
    scale, shift = itk.AffineTransform[itk.D, 3].New(), itk.TranslationTransform[itk.D, 3].New()
    scale.Scale([2, 3, 4])
    shift.SetOffset([1, 2, 3])
    composition.AddTransform(scale)
    composition.AddTransform(shift)
    itk.transformwrite(composition, str(tmp_path / "t.h5"))
    assert list(composition.TransformPoint([1.0, 1.0, 1.0])) == [4, 9, 16]
    found = read_transform(tmp_path / "t.h5").points(torch.tensor([[-1.0, -1.0, 1.0]])) * LPS
    torch.testing.assert_close(found, torch.tensor([[4.0, 9, 16]], dtype=torch.float64))


def spline_around(centre: Tensor, size: float) -> Any:
    """A B-spline of random coefficients in a cube of the world (RAS)."""
    spline = itk.BSplineTransform[itk.D, 3, 3].New()
    spline.SetTransformDomainOrigin((centre * LPS - size / 2).tolist())
    spline.SetTransformDomainPhysicalDimensions([size] * 3)
    spline.SetTransformDomainMeshSize([4] * 3)
    parameters = itk.OptimizerParameters[itk.D](spline.GetNumberOfParameters())
    values = np.random.default_rng(0).normal(size=spline.GetNumberOfParameters())
    for n, value in enumerate(values):
        parameters.SetElement(n, value)
    spline.SetParameters(parameters)
    return spline


def test_splines_are_sampled_on_the_reference(tmp_path: Path) -> None:
    grid = FIXED["oblique"]
    spline = spline_around(CENTRE, 120)
    itk.transformwrite(spline, str(tmp_path / "t.h5"))
    with pytest.raises(InputError, match="BSplineTransform, which has to be sampled: give the fixed image"):
        read_transform(tmp_path / "t.h5")
    point = (grid.affine @ torch.tensor([5.0, 6, 7, 1], dtype=torch.float64))[:3]
    expected = torch.tensor(list(spline.TransformPoint((point * LPS).tolist())), dtype=torch.float64) * LPS
    found = read_transform(tmp_path / "t.h5", grid).points(point[None])[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_splines_are_sampled_where_an_affine_has_put_the_reference(tmp_path: Path) -> None:
    grid, shift = FIXED["oblique"], torch.tensor([70.0, 0, -10], dtype=torch.float64)
    affine = itk.TranslationTransform[itk.D, 3].New()
    affine.SetOffset((shift * LPS).tolist())
    composition = itk.CompositeTransform[itk.D, 3].New()
    composition.AddTransform(spline_around(CENTRE + shift, 120))
    composition.AddTransform(affine)
    itk.transformwrite(composition, str(tmp_path / "t.h5"))
    # Voxels, where the samples are exact.
    voxels = torch.tensor([[5.0, 6, 7], [2, 15, 3], [13, 4, 9]], dtype=torch.float64)
    points = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    expected = [list(composition.TransformPoint(point)) for point in (points * LPS).tolist()]
    found = read_transform(tmp_path / "t.h5", grid).points(points) * LPS
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def test_fields_are_found_where_their_header_says(tmp_path: Path) -> None:
    grid, ddf = FIXED["flipped"], smooth(FIXED["flipped"].shape)
    write_displacement(tmp_path / "mm.nii.gz", ddf, grid)
    write_ddf(tmp_path / "voxels.nii.gz", ddf[0], grid.affine)
    for name in ("mm.nii.gz", "voxels.nii.gz"):
        # A reference of another person does not change it.
        for reference in (None, FIXED["oblique"]):
            (field,) = read_transform(tmp_path / name, reference).stages
            assert isinstance(field, Field) and field.grid.same_as(grid)
            torch.testing.assert_close(field.ddf, ddf, atol=1e-5, rtol=0)


def test_fields_without_a_world_need_a_reference(tmp_path: Path) -> None:
    grid, ddf = FIXED["flipped"], smooth(FIXED["flipped"].shape)
    np.savez(tmp_path / "t.npz", ddf[0].numpy())
    write_ddf(tmp_path / "t.nii.gz", ddf[0], torch.eye(4))
    for name in ("t.npz", "t.nii.gz"):
        with pytest.raises(InputError, match="give the fixed image as reference"):
            read_transform(tmp_path / name)
        (field,) = read_transform(tmp_path / name, grid).stages
        assert isinstance(field, Field) and field.grid is grid
        torch.testing.assert_close(field.ddf, ddf)


def test_files_that_are_no_transforms(tmp_path: Path) -> None:
    (tmp_path / "bad.h5").write_text("x")
    (tmp_path / "bad.tfm").write_text("x")
    flat = itk.Euler2DTransform[itk.D].New()
    itk.transformwrite(flat, str(tmp_path / "flat.tfm"))
    write_transform(tmp_path / "good.h5", Transform(()))
    for name, convention, message in (
        ("bad.h5", "auto", "cannot be read as an ITK transform"),
        ("bad.tfm", "auto", "cannot be read as an ITK transform"),
        ("flat.tfm", "auto", "a transform in 2D, but the fixed image is 3D"),
        ("none.h5", "auto", "does not exist"),
        ("good.h5", "voxels", "ITK transform file, but --convention voxels was stated"),
    ):
        with pytest.raises(InputError, match=message):
            read_transform(tmp_path / name, FIXED["oblique"], convention)
    with pytest.raises(InputError, match="ITK transform file, but --convention voxels was stated"):
        read_transform(tmp_path / "good.h5", None, "voxels")


def test_nan_in_a_transform_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = FIXED["oblique"]
    ddf = smooth(grid.shape)
    ddf[0, 0, 3, 3, 3] = torch.nan
    damaged = Transform((Affine(torch.eye(4)), Field(grid, ddf)))
    with pytest.raises(InputError, match="t.h5 is not written: of the field 1 values are NaN"):
        write_transform(tmp_path / "t.h5", damaged)
    with pytest.raises(InputError, match="d.nii.gz is not written"):
        write_displacement(tmp_path / "d.nii.gz", ddf, grid)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("common.io.itk_hdf5.check_to_write", lambda *_: None)
    write_transform(tmp_path / "t.h5", damaged)
    with pytest.raises(InputError, match="NaN or infinite"):
        read_transform(tmp_path / "t.h5")


# Writing


def test_a_transform_has_one_form(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="written as .h5"):
        write_transform(tmp_path / "t.tfm", Transform(()))


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    before, action = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        with pytest.raises(InputError, match="Cannot write"):
            write_transform(tmp_path / "t.h5", chain(FIXED["oblique"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, action)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_transform(tmp_path / "t.h5", chain(FIXED["oblique"]))
    assert list(tmp_path.iterdir()) == []


def test_transforms_have_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_transform(tmp_path / "t.h5", Transform(()))
    finally:
        os.umask(before)
    assert (tmp_path / "t.h5").stat().st_mode & 0o777 == 0o600


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        write_transform(tmp_path / "file" / "t.h5", Transform(()))
    assert os.listdir(tmp_path) == ["file"]


# Real fields


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data pack is not beside the repository")
@pytest.mark.parametrize(("name", "dice"), [("greedy_2mm", 0.76533), ("ants_syn_2mm", 0.76090)])
def test_fields_of_other_tools_reach_their_dice(tmp_path: Path, name: str, dice: float) -> None:
    import json

    folder = DATA / "brain" / "aligned_2mm" / "labelsTr"
    groups = json.loads((DATA / "brain" / "label_groups.json").read_text())
    table = torch.tensor(groups["lookup_table"], dtype=torch.int32)
    files: list[Any] = [nibabel.load(folder / f"MALF_{person}_0000.nii.gz") for person in ("1006", "1018")]
    fixed, moving = (table[torch.from_numpy(np.asarray(file.dataobj).astype(np.int64))][None, None] for file in files)
    grid = read_grid(folder / "MALF_1006_0000.nii.gz")
    transform = read_transform(DATA / "oasis_pair" / f"{name}.nii.gz")
    write_transform(tmp_path / "t.h5", transform)
    for read in (transform, read_transform(tmp_path / "t.h5")):
        warped = warp_labels(moving, displacement_to_moving(grid, grid, read.ddf(grid)))
        found = dice_l2r(warped, fixed, groups["evaluation_groups"], moving)
        assert float(found.nanmean()) == pytest.approx(dice, abs=1e-4)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates, zoom
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.checks import InputError
from common.io.fields import CONVENTIONS, read_field, write_displacement
from common.io.learn2reg import to_half_resolution
from common.io.nifti import read_grid, write_ddf
from common.io.transforms import Field, read_transform
from common.spatial import Grid, identity_grid, resize_image

DATA = Path(__file__).parents[4] / "shared" / "data"
# Rotated by Euler angles, flipped, anisotropic.
OBLIQUE = torch.eye(4, dtype=torch.float64)
OBLIQUE[:3, :3] = torch.from_numpy(
    Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix() * (-1.8, 1.2, 2.4)
)
OBLIQUE[:3, 3] = torch.tensor([40.0, -25.0, 12.0])
GRID = Grid((8, 10, 6), OBLIQUE)


def smooth(size: float = 1.5, shape: tuple[int, int, int] = GRID.shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return size * resize_image(torch.randn(1, 3, 3, 3, 3, generator=generator), shape)


def save(path: Path, array: np.ndarray, affine: Any = OBLIQUE, intent: int = 0) -> Path:
    file = nibabel.Nifti1Image(array.astype(np.float32), None if affine is None else np.asarray(affine))
    file.header.set_intent(intent)
    nibabel.save(file, path)
    return path


def last(ddf: Tensor) -> np.ndarray:
    return ddf[0].movedim(0, -1).numpy()


def vectors(ddf: Tensor, signs: tuple[int, int, int]) -> np.ndarray:
    """Millimetres by the definition: the affine applied to each displacement."""
    return (last(ddf).astype(np.float64) @ OBLIQUE[:3, :3].numpy().T * signs)[..., None, :]


# What is read


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_our_voxels_come_back(tmp_path: Path, name: str) -> None:
    ddf = smooth()
    write_ddf(tmp_path / name, ddf[0], GRID.affine)
    found, convention = read_field(tmp_path / name, GRID)
    assert convention == "voxels"
    torch.testing.assert_close(found, ddf, atol=0, rtol=0)


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("channel_first", [False, True])
def test_numpy_files_of_either_order(tmp_path: Path, name: str, channel_first: bool) -> None:
    ddf = smooth()
    array = ddf[0].numpy() if channel_first else last(ddf)
    np.savez(tmp_path / name, array) if name == "a.npz" else np.save(tmp_path / name, array)
    found, convention = read_field(tmp_path / name, GRID)
    assert convention == "voxels"
    torch.testing.assert_close(found, ddf, atol=0, rtol=0)


def test_half_resolution_is_found_by_its_shape(tmp_path: Path) -> None:
    ddf = smooth()
    half = to_half_resolution(ddf[0].numpy())
    np.savez(tmp_path / "a.npz", half)
    found, convention = read_field(tmp_path / "a.npz", GRID)
    assert convention == "learn2reg_half"
    expected = np.stack([zoom(channel.astype(np.float32), 2, order=2) for channel in half])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("intent", "signs", "name"), [(1007, (-1, -1, 1), "lps_mm"), (1006, (1, 1, 1), "ras_mm")])
@pytest.mark.parametrize("stated", [True, False])
def test_millimetres_by_their_intent(
    tmp_path: Path, intent: int, signs: tuple[int, int, int], name: str, stated: bool
) -> None:
    ddf = smooth()
    path = save(tmp_path / "a.nii.gz", vectors(ddf, signs), intent=intent)
    found, convention = read_field(path, GRID, name if stated else "auto")
    assert convention == name
    torch.testing.assert_close(found, ddf, atol=1e-5, rtol=0)


def test_itk_agrees_on_what_the_intents_mean(tmp_path: Path) -> None:
    array = np.broadcast_to(np.array([1.0, 2.0, 3.0]), (4, 5, 6, 1, 3))
    for intent, expected in ((1007, [1, 2, 3]), (1006, [-1, -2, 3])):
        image = itk.imread(str(save(tmp_path / f"{intent}.nii.gz", array, np.eye(4), intent)))
        np.testing.assert_array_equal(itk.array_from_image(image)[0, 0, 0], expected)


def test_what_is_written_is_what_is_read_and_what_itk_reads(tmp_path: Path) -> None:
    ddf = smooth()
    write_displacement(tmp_path / "a.nii.gz", ddf, GRID)
    found, convention = read_field(tmp_path / "a.nii.gz", GRID)
    assert convention == "lps_mm"
    torch.testing.assert_close(found, ddf, atol=1e-5, rtol=0)
    image = itk.imread(str(tmp_path / "a.nii.gz"))
    np.testing.assert_allclose(
        itk.array_from_image(image).transpose(2, 1, 0, 3), vectors(ddf, (-1, -1, 1))[..., 0, :], atol=1e-5
    )
    file: Any = nibabel.load(tmp_path / "a.nii.gz")
    assert file.shape == (*GRID.shape, 1, 3) and file.header["intent_code"] == 1007


def test_world_fields_on_another_grid_are_resampled(tmp_path: Path) -> None:
    coarse = Grid((10, 12, 9), torch.diag(torch.tensor([3.0, 3.0, 3.0, 1.0])))
    fine = Grid((5, 6, 7), torch.tensor([[0, -1.5, 0, 20], [2.0, 0, 0, 4], [0, 0, 1, 3], [0, 0, 0, 1]]))
    ddf = smooth(shape=coarse.shape)
    write_displacement(tmp_path / "a.nii.gz", ddf, coarse)
    found, _ = read_field(tmp_path / "a.nii.gz", fine)
    world = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in fine.shape))
    world = world @ fine.affine[:3, :3].T + fine.affine[:3, 3]
    sampled = np.stack([map_coordinates(3 * c.numpy(), (world / 3).T.numpy(), order=1, mode="nearest") for c in ddf[0]])
    expected = torch.linalg.inv(fine.affine[:3, :3]) @ torch.from_numpy(sampled).double()
    torch.testing.assert_close(found[0].flatten(1), expected.float(), atol=1e-4, rtol=0)


def test_splines_are_sampled_on_the_grid(tmp_path: Path) -> None:
    spline = itk.BSplineTransform[itk.D, 3, 3].New()
    centre = OBLIQUE[:3, :3] @ (torch.tensor(GRID.shape, dtype=torch.float64) / 2) + OBLIQUE[:3, 3]
    spline.SetTransformDomainOrigin((centre * torch.tensor([-1, -1, 1]) - 50).tolist())
    spline.SetTransformDomainPhysicalDimensions([100.0] * 3)
    parameters = itk.OptimizerParameters[itk.D](spline.GetNumberOfParameters())
    # Equal coefficients are a shift, here of 2 mm in each direction of LPS.
    parameters.Fill(2)
    spline.SetParameters(parameters)
    itk.transformwrite(spline, str(tmp_path / "a.h5"))
    found, convention = read_field(tmp_path / "a.h5", GRID)
    assert convention == "itk"
    shift = torch.linalg.inv(OBLIQUE[:3, :3]) @ torch.tensor([-2.0, -2, 2], dtype=torch.float64)
    torch.testing.assert_close(found, shift.float().view(1, 3, 1, 1, 1).expand_as(found), atol=1e-5, rtol=0)


# What is refused


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 6, 10, 3), r"axes are permuted.*\(0, 2, 1\)"),
        ((3, 10, 8, 6), r"axes are permuted.*\(1, 0, 2\)"),
        ((3, 4, 5, 3), "half-resolution form of Learn2Reg: use --convention learn2reg_half"),
        ((9, 10, 6, 3), "grid of another image"),
        ((8, 10, 6, 20), "series of 20 volumes"),
        ((8, 10, 6), "scalar image"),
        ((8, 10, 6, 2, 3), "this is something else"),
    ],
)
def test_wrong_shapes_are_named(tmp_path: Path, shape: tuple[int, ...], message: str) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros(shape))
    with pytest.raises(InputError, match=message) as caught:
        read_field(path, GRID, "auto" if len(shape) == 5 else "voxels")
    assert "a.nii.gz" in str(caught.value)


def test_half_resolution_of_permuted_axes_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.zeros((3, 4, 3, 5), np.float16))
    with pytest.raises(InputError, match=r"half the resolution with permuted axes.*\(0, 2, 1\)"):
        read_field(tmp_path / "a.npz", GRID)


def test_full_resolution_stated_as_half_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", smooth()[0].numpy())
    with pytest.raises(InputError, match="full resolution: use --convention voxels"):
        read_field(tmp_path / "a.npz", GRID, "learn2reg_half")


def test_full_field_that_may_be_half_of_a_larger_one_must_be_stated(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", smooth()[0].numpy().astype(np.float16))
    with pytest.raises(InputError, match="state --convention voxels"):
        read_field(tmp_path / "a.npz", GRID)
    assert read_field(tmp_path / "a.npz", GRID, "voxels")[1] == "voxels"


# Intents are a habit of tools: a statement in other vectors counts more.
STATABLE = {"auto", "lps_mm", "ras_mm", "ras_positions", "voxels"}


@pytest.mark.parametrize("stated", sorted(set(CONVENTIONS) - STATABLE))
def test_vector_image_stated_as_something_else(tmp_path: Path, stated: str) -> None:
    write_displacement(tmp_path / "a.nii.gz", smooth(), GRID)
    with pytest.raises(InputError, match="vector image of intent 1007, that is lps_mm"):
        read_field(tmp_path / "a.nii.gz", GRID, stated)


@pytest.mark.parametrize("stated", ["lps_mm", "ras_mm"])
def test_our_voxels_stated_as_millimetres(tmp_path: Path, stated: str) -> None:
    write_ddf(tmp_path / "a.nii.gz", smooth()[0], GRID.affine)
    with pytest.raises(InputError, match="says that it holds voxels, but --convention .* state auto or voxels"):
        read_field(tmp_path / "a.nii.gz", GRID, stated)


@pytest.mark.parametrize(("stated", "signs"), [("lps_mm", (-1, -1, 1)), ("ras_mm", (1, 1, 1))])
def test_a_statement_counts_where_the_header_says_little(
    tmp_path: Path, stated: str, signs: tuple[int, int, int]
) -> None:
    values = vectors(smooth(), signs)
    np.savez(tmp_path / "first.npz", np.moveaxis(values[..., 0, :], -1, 0))
    for path in (
        save(tmp_path / "a.nii.gz", values[..., 0, :]),
        save(tmp_path / "b.nii.gz", values, intent=1006),
        save(tmp_path / "c.nii.gz", values, intent=1007),
        tmp_path / "first.npz",
    ):
        found, convention = read_field(path, GRID, stated)
        assert convention == stated
        torch.testing.assert_close(found, smooth(), atol=1e-5, rtol=0)


def test_vector_image_without_intent_must_be_stated(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", vectors(smooth(), (-1, -1, 1)))
    with pytest.raises(InputError, match="vector image without intent: state --convention voxels, lps_mm, ras_mm"):
        read_field(path, GRID)
    torch.testing.assert_close(read_field(path, GRID, "lps_mm")[0], smooth(), atol=1e-5, rtol=0)


def test_other_orientation_of_a_field_in_voxels_is_named(tmp_path: Path) -> None:
    flipped = OBLIQUE @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    path = save(tmp_path / "a.nii.gz", last(smooth()), flipped.numpy())
    with pytest.raises(InputError, match="orientation RAS, but the fixed image is LAS"):
        read_field(path, GRID)


@pytest.mark.parametrize("affine", [None, np.eye(4), np.diag([2.0, 2.0, 2.0, 1.0])])
def test_made_up_headers_of_fields_in_voxels_are_ignored(tmp_path: Path, affine: Any) -> None:
    torch.testing.assert_close(read_field(save(tmp_path / "a.nii", last(smooth()), affine), GRID)[0], smooth())


def test_field_beside_the_image_is_refused(tmp_path: Path) -> None:
    far = OBLIQUE.clone()
    far[0, 3] += 500
    write_displacement(tmp_path / "a.nii.gz", smooth(), Grid(GRID.shape, far))
    with pytest.raises(InputError, match="does not meet the fixed image"):
        read_field(tmp_path / "a.nii.gz", GRID)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["voxels", "lps_mm", "half"])
def test_values_that_are_no_numbers_are_counted(tmp_path: Path, bad: float, kind: str) -> None:
    ddf = smooth()
    ddf[0, 1, 2, 4, 4] = bad
    path = tmp_path / ("a.npz" if kind == "half" else "a.nii.gz")
    if kind == "voxels":
        write_ddf(path, ddf[0], GRID.affine)
    elif kind == "half":
        np.savez(path, ddf[0, :, ::2, ::2, ::2].numpy())
    else:
        save(path, ddf[0].movedim(0, -1)[..., None, :].numpy(), intent=1007)
    with pytest.raises(InputError, match="holds 1 values that are NaN or infinite"):
        read_field(path, GRID)


def test_displacements_larger_than_the_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", last(smooth(30)))
    with pytest.raises(InputError, match=r"voxels along axis \d, which has only"):
        read_field(tmp_path / "a.npz", GRID)


def test_a_shift_between_worlds_may_be_larger_than_the_image(tmp_path: Path) -> None:
    ddf = smooth() + 100
    write_ddf(tmp_path / "a.nii.gz", ddf[0], GRID.affine)
    torch.testing.assert_close(read_field(tmp_path / "a.nii.gz", GRID)[0], ddf)


@pytest.mark.parametrize("units", ["voxels", "normalised"])
def test_positions_are_told_from_displacements(tmp_path: Path, units: str) -> None:
    size = torch.tensor(GRID.shape).view(1, 3, 1, 1, 1)
    positions = identity_grid(GRID.shape) + smooth(0.3)
    np.savez(tmp_path / "a.npz", last(positions if units == "voxels" else positions * 2 / (size - 1) - 1))
    with pytest.raises(InputError, match=rf"positions \({units}"):
        read_field(tmp_path / "a.npz", GRID)


def test_small_fields_are_read_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    np.savez(tmp_path / "a.npz", last(smooth(0.01)))
    np.savez(tmp_path / "zero.npz", np.zeros_like(last(smooth())))
    with caplog.at_level(logging.WARNING):
        assert not read_field(tmp_path / "zero.npz", GRID)[0].any()
        assert not caplog.records
        read_field(tmp_path / "a.npz", GRID)
    assert "normalised" in caplog.text


def test_numpy_files_hold_one_array_of_numbers(tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.zeros(3), b=np.zeros(3))
    np.savez(tmp_path / "objects.npz", np.array([{}, None]))
    np.savez(tmp_path / "text.npz", np.array(["a"]))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no zip")
    for name, message in (
        ("two", "holds 2 arrays"),
        ("objects", "cannot be read"),
        ("text", "a field has numbers"),
        ("damaged", "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_field(tmp_path / f"{name}.npz", GRID)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "cut.nii.gz").write_bytes(b"\x1f\x8b cut")
    (tmp_path / "a.png").touch()
    for path, convention, message in (
        (tmp_path / "none.nii.gz", "auto", "does not exist"),
        (tmp_path, "auto", "dcm2niix"),
        (tmp_path / "cut.nii.gz", "auto", "cannot be read as NIfTI"),
        (tmp_path / "a.png", "auto", "is no field"),
        (tmp_path / "a.png", "xyz", "convention 'xyz' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            read_field(path, GRID, convention)


def test_file_cut_short(tmp_path: Path) -> None:
    write_ddf(tmp_path / "a.nii.gz", smooth()[0], GRID.affine)
    content = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_field(tmp_path / "a.nii.gz", GRID)


# Grids


def test_grid_of_a_header(tmp_path: Path) -> None:
    grid = read_grid(save(tmp_path / "a.nii.gz", np.zeros((4, 5, 6, 1))))
    assert grid.shape == (4, 5, 6)
    torch.testing.assert_close(grid.affine, OBLIQUE, atol=1e-6, rtol=0)


def test_sizes_of_sheared_voxels_are_stated(tmp_path: Path) -> None:
    sheared = torch.tensor([[2.0, 0.75, 0, 0], [0, 3, 0, 0], [0, 1, 4, 0], [0, 0, 0, 1]], dtype=torch.float64)
    grid = Grid((4, 5, 6), sheared)
    write_displacement(tmp_path / "a.nii.gz", torch.zeros(1, 3, *grid.shape), grid)
    file: Any = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(file.affine, sheared.numpy())
    # NIfTI keeps voxel sizes in single precision.
    np.testing.assert_allclose(file.header.get_zooms()[:3], grid.spacing, rtol=1e-6)


@pytest.mark.parametrize(("unit", "factor"), [("micron", 1e-3), ("meter", 1e3)])
def test_a_field_is_found_where_its_unit_of_length_puts_it(tmp_path: Path, unit: str, factor: float) -> None:
    file = nibabel.Nifti1Image(np.zeros((4, 5, 6, 3), np.float32), OBLIQUE.numpy())
    file.header.set_xyzt_units(unit, "sec")
    nibabel.save(file, tmp_path / "a.nii")
    (stage,) = read_transform(tmp_path / "a.nii").stages
    assert isinstance(stage, Field)
    torch.testing.assert_close(stage.grid.affine[:3], factor * OBLIQUE[:3], rtol=1e-6, atol=0)


def test_images_that_have_no_grid(tmp_path: Path) -> None:
    singular: Any = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), OBLIQUE.numpy())
    singular.header["srow_y"] = 0
    (tmp_path / "c.nii").write_bytes(singular.header.binaryblock + bytes(4 + 4 * 120))
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    for path, message in (
        (save(tmp_path / "a.nii", np.zeros((4, 5, 6, 7))), "one image is expected"),
        (save(tmp_path / "b.nii", np.zeros(4)), "two or three dimensions is expected"),
        (tmp_path / "c.nii", "affine cannot be inverted"),
        (tmp_path / "a.dcm", "DICOM"),
        (tmp_path, "without DICOM images"),
        (tmp_path / "d.nii", "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            read_grid(path)


# Real fields of independent tools


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data pack is not beside the repository")
@pytest.mark.parametrize(
    ("name", "resolution", "convention", "mean", "largest"),
    [
        ("greedy_2mm.nii.gz", "2mm", "lps_mm", 1.8553, 6.3851),
        ("ants_syn_2mm.nii.gz", "2mm", "lps_mm", 1.921, 6.528),
        ("clapirn_1mm_half.npz", "1mm", "learn2reg_half", 2.891, 11.399),
    ],
)
def test_fields_of_other_tools(name: str, resolution: str, convention: str, mean: float, largest: float) -> None:
    folder = DATA / "brain" / f"aligned_{resolution}"
    grid = read_grid(folder / "imagesTr" / "MALF_1006_0000.nii.gz")
    label: Any = nibabel.load(folder / "labelsTr" / "MALF_1006_0000.nii.gz")
    ddf, found = read_field(DATA / "oasis_pair" / name, grid)
    assert found == convention
    length = ddf[0].norm(dim=0)
    brain = torch.from_numpy(np.asarray(label.dataobj)) > 0
    assert float(length[brain].mean()) == pytest.approx(mean, abs=0.02)
    assert float(length.max()) == pytest.approx(largest, abs=1e-3)

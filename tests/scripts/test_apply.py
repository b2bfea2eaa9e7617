# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from common.blocks.field_map import FieldMap
from common.blocks.hybrid_code import HybridCode
from common.blocks.nephi import ModulatedField
from common.checks import InputError
from common.io.header_forms import set_world
from common.io.landmarks import read_points
from common.io.map_files import write_map
from common.io.nifti import write_ddf
from common.io.transforms import Affine, Field, Transform, write_displacement, write_transform
from common.spatial import Grid, resize_image

SCRIPT = Path(__file__).parents[2] / "scripts" / "apply.py"
DATA = Path(__file__).parents[3] / "shared" / "data"
MATRIX = torch.tensor([[1.03, 0.1, 0, 2.1], [-0.08, 0.97, 0.05, -1.3], [0, 0.02, 1.02, 1.7], [0, 0, 0, 1]])


def placed(rotation: tuple[float, float, float], spacing: tuple[float, float, float], shape: Any) -> Grid:
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = torch.from_numpy(Rotation.from_euler("xyz", rotation, degrees=True).as_matrix() * spacing)
    affine[:3, 3] = 20 - affine[:3, :3] @ ((torch.tensor(shape, dtype=torch.float64) - 1) / 2)
    return Grid(shape, affine)


FIXED = placed((20, -15, 10), (-1.8, 1.2, 2.4), (16, 20, 12))
MIDDLE = placed((5, 0, -10), (1.5, -1.4, 1.3), (20, 19, 21))
MOVING = placed((90, 8, 95), (-2.0, 1.4, 1.6), (17, 19, 18))


@pytest.fixture(scope="module")
def apply() -> ModuleType:
    spec = importlib.util.spec_from_file_location("apply_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["apply_script"] = module
    spec.loader.exec_module(module)
    return module


def smooth(shape: tuple[int, int, int], channels: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return resize_image(torch.randn(1, channels, *[max(2, n // 4) for n in shape], generator=generator), shape)


def save(path: Path, array: np.ndarray, grid: Grid) -> Path:
    file: Any = nibabel.Nifti1Image(array, None)
    set_world(file, grid.affine.numpy())
    nibabel.save(file, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Scans F, A, M and the transforms M_to_A (affine and field) and A_to_F (field)."""
    save(tmp_path / "F.nii.gz", np.zeros(FIXED.shape, np.int16), FIXED)
    save(tmp_path / "A.nii.gz", np.zeros(MIDDLE.shape, np.float32), MIDDLE)
    save(tmp_path / "M.nii.gz", smooth(MOVING.shape, 1, 0)[0, 0].numpy() + 5, MOVING)
    label = (smooth(MOVING.shape, 1, 1)[0, 0].numpy() * 2).round().clip(0, 3)
    save(tmp_path / "M_label.nii.gz", (label * 100).astype(np.uint16), MOVING)
    write_transform(
        tmp_path / "M_to_A.h5", Transform((Field(MIDDLE, 0.6 * smooth(MIDDLE.shape, 3, 2)), Affine(MATRIX)))
    )
    write_transform(tmp_path / "A_to_F.h5", Transform((Field(FIXED, 0.4 * smooth(FIXED.shape, 3, 3)),)))
    return tmp_path


def run(apply: ModuleType, folder: Path, *arguments: str) -> Path:
    """Runs the tool with names of files in the folder; the output."""
    output = folder / ("out.csv" if "--landmarks" in arguments else "out.nii.gz")
    words = [
        inside(folder, word) if word.endswith((".gz", ".csv", ".npz", ".h5", ".pt")) else word for word in arguments
    ]
    apply.main([*map(str, words), "--output", str(output), "--overwrite"])
    return output


def inside(folder: Path, word: Any) -> str:
    return f"inverse:{folder / word[8:]}" if word.startswith("inverse:") else str(folder / word)


def values(path: Path) -> np.ndarray:
    file: Any = nibabel.load(path)
    return np.asarray(file.dataobj)


def composed(folder: Path, names: Sequence[str]) -> Any:
    """By ITK, which applies the transform that was added last to a point first."""
    composition = itk.CompositeTransform[itk.D, 3].New()
    for name in reversed(names):
        composition.AddTransform(itk.transformread(str(folder / name))[0])
    return composition


def by_itk(folder: Path, names: list[str], image: str, nearest: bool = False, outside: float = 0) -> np.ndarray:
    """Resampled on F by ITK."""
    composition = composed(folder, names)
    moving, fixed = (itk.imread(str(folder / name), itk.F) for name in (image, "F.nii.gz"))
    kind = type(moving)
    interpolator = itk.NearestNeighborInterpolateImageFunction if nearest else itk.LinearInterpolateImageFunction
    result = itk.resample_image_filter(
        moving,
        transform=composition,
        use_reference_image=True,
        reference_image=fixed,
        interpolator=interpolator[kind, itk.D].New(),
        default_pixel_value=outside,
    )
    return itk.array_from_image(result).T


# Images


def test_image_of_a_composition_is_that_of_itk(apply: ModuleType, folder: Path) -> None:
    names = ("A_to_F.h5", "M_to_A.h5")
    output = run(apply, folder, "--transform", *names, "--moving", "M.nii.gz", "--reference", "F.nii.gz")
    smallest = float(values(folder / "M.nii.gz").min())
    expected = by_itk(folder, list(names), "M.nii.gz", outside=smallest)
    np.testing.assert_allclose(values(output), expected, atol=3e-4)
    assert (expected != smallest).mean() > 0.5
    swapped = by_itk(folder, list(names[::-1]), "M.nii.gz", outside=smallest)
    assert np.abs(values(output) - swapped).max() > 0.1


def test_image_of_a_composition_is_that_of_ants(apply: ModuleType, folder: Path) -> None:
    ants = pytest.importorskip("ants")
    names = ["A_to_F.h5", "M_to_A.h5"]
    arguments = ("--moving", "M.nii.gz", "--reference", "F.nii.gz", "--outside", "-1")
    output = run(apply, folder, "--transform", *names, *arguments)
    fixed, moving = (ants.image_read(str(folder / name)) for name in ("F.nii.gz", "M.nii.gz"))
    expected = ants.apply_transforms(fixed, moving, [str(folder / name) for name in names], defaultvalue=-1)
    np.testing.assert_allclose(values(output), expected.numpy(), atol=3e-4)


def test_result_has_the_header_of_the_reference(apply: ModuleType, folder: Path) -> None:
    reference: Any = nibabel.load(folder / "F.nii.gz")
    reference.header["qform_code"], reference.header["sform_code"] = 1, 4
    reference.header.set_slope_inter(0.5, 3)
    reference.header["cal_max"] = 9
    nibabel.save(reference, folder / "F.nii.gz")
    arguments = ("--transform", "A_to_F.h5", "--moving", "M.nii.gz", "--reference", "F.nii.gz")
    header: Any = nibabel.load(run(apply, folder, *arguments)).header
    assert header.get_data_dtype() == np.float32 and header["cal_max"] == 0
    assert header.get_slope_inter() in ((None, None), (1, 0))
    for name in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim", "dim"):
        np.testing.assert_array_equal(header[name], reference.header[name])


def test_any_reference_grid(apply: ModuleType, folder: Path) -> None:
    arguments = ("--transform", "M_to_A.h5", "--moving", "M.nii.gz", "--reference", "M_label.nii.gz")
    assert values(run(apply, folder, *arguments)).shape == MOVING.shape


@pytest.mark.parametrize("form", ["mm.nii.gz", "voxels.nii.gz", "voxels.npz"])
def test_fields_serve_as_transforms(apply: ModuleType, folder: Path, form: str) -> None:
    ddf = 0.4 * smooth(FIXED.shape, 3, 3)
    write_displacement(folder / "mm.nii.gz", ddf, FIXED)
    write_ddf(folder / "voxels.nii.gz", ddf[0], FIXED.affine)
    np.savez(folder / "voxels.npz", ddf[0].numpy())
    arguments = ("--moving", "M.nii.gz", "--reference", "F.nii.gz", "--transform")
    expected = values(run(apply, folder, *arguments, "A_to_F.h5"))
    np.testing.assert_allclose(values(run(apply, folder, *arguments, form)), expected, atol=1e-4)


def test_inverse_undoes_a_transform(apply: ModuleType, folder: Path) -> None:
    arguments = ("--moving", "M.nii.gz", "--reference", "F.nii.gz", "--transform")
    back = values(run(apply, folder, *arguments, "A_to_F.h5", "inverse:A_to_F.h5"))
    write_transform(folder / "none.h5", Transform(()))
    plain = values(run(apply, folder, *arguments, "none.h5"))
    there = values(run(apply, folder, *arguments, "A_to_F.h5"))
    inner = (slice(3, -3),) * 3
    assert np.abs(back - plain)[inner].mean() < 0.05 * np.abs(there - plain)[inner].mean()


# Other tools


def test_each_transform_has_its_convention(apply: ModuleType, folder: Path) -> None:
    ddf = 0.4 * smooth(FIXED.shape, 3, 3)
    shift = np.einsum("rc,cijk->ijkr", FIXED.affine[:3, :3].numpy(), ddf[0].double().numpy())
    file: Any = nibabel.Nifti1Image(shift.astype(np.float32), FIXED.affine.numpy())
    nibabel.save(file, folder / "ras.nii.gz")
    np.savetxt(folder / "greedy.mat", MATRIX.numpy())
    write_transform(folder / "affine.h5", Transform((Affine(MATRIX),)))
    arguments = ("--moving", "M.nii.gz", "--reference", "F.nii.gz", "--transform")
    expected = values(run(apply, folder, *arguments, "A_to_F.h5", "affine.h5"))
    words = (*arguments, "ras.nii.gz", str(folder / "greedy.mat"), "--convention")
    found = values(run(apply, folder, *words, "ras_mm", "ras_matrix"))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    with pytest.raises(InputError, match="2 transforms have 3 conventions: state one, or one for each"):
        run(apply, folder, *words, "ras_mm", "ras_matrix", "itk")
    with pytest.raises(InputError, match=r"greedy.mat is a 4x4 matrix of text, but --convention ras_mm"):
        run(apply, folder, *words, "ras_mm")


def test_files_of_fsl_know_both_scans(apply: ModuleType, folder: Path) -> None:
    arguments = ("--reference", "F.nii.gz", "--moving", "M.nii.gz")
    run(apply, folder, "--transform", "A_to_F.h5", *arguments, "--save_as", "fsl").rename(folder / "warp.nii.gz")
    expected = values(run(apply, folder, "--transform", "A_to_F.h5", *arguments))
    np.testing.assert_allclose(
        values(run(apply, folder, "--transform", "warp.nii.gz", *arguments)), expected, atol=1e-3
    )
    table(folder / "in.csv", POINTS)
    words = ("--transform", "warp.nii.gz", "--landmarks", "in.csv", "--reference", "F.nii.gz")
    _, found = rows(run(apply, folder, *words, "--target", "M.nii.gz"))
    _, there = rows(run(apply, folder, "--transform", "A_to_F.h5", "--landmarks", "in.csv"))
    np.testing.assert_allclose(found, there, atol=1e-3)
    # Backwards, what was the fixed scan is the moving one.
    there_and_back = run(apply, folder, "--transform", "A_to_F.h5", "--landmarks", "in.csv")
    there_and_back.rename(folder / "there.csv")
    backwards = ("inverse:warp.nii.gz", "--landmarks", "there.csv", "--reference", "M.nii.gz")
    _, back = rows(run(apply, folder, "--transform", *backwards, "--target", "F.nii.gz"))
    np.testing.assert_allclose(back, POINTS, atol=2e-3)
    # Between two others, its scans are not known.
    with pytest.raises(InputError, match="needs both of its scans.*rewrite it with apply.py --save_as itk"):
        run(apply, folder, "--transform", "warp.nii.gz", "M_to_A.h5", *arguments)


@pytest.mark.parametrize("form", ["itk", "voxels", "niftyreg", "spm", "fsl", "freesurfer", "mrtrix"])
def test_a_chain_is_saved_for_another_tool(apply: ModuleType, folder: Path, form: str) -> None:
    arguments = ("--reference", "F.nii.gz", "--moving", "M.nii.gz", "--outside", "0")
    expected = values(run(apply, folder, "--transform", "A_to_F.h5", "M_to_A.h5", *arguments))
    words = ("--transform", "A_to_F.h5", "M_to_A.h5", *arguments[:4], "--save_as", form)
    run(apply, folder, *words).rename(folder / "saved.nii.gz")
    found = values(run(apply, folder, "--transform", "saved.nii.gz", *arguments))
    assert np.quantile(np.abs(found - expected), 0.99) < 2e-3


# Labels


def test_labels_are_nearest_and_keep_their_type(apply: ModuleType, folder: Path) -> None:
    names = ("A_to_F.h5", "M_to_A.h5")
    output = run(apply, folder, "--transform", *names, "--label", "M_label.nii.gz", "--reference", "F.nii.gz")
    assert values(output).dtype == np.uint16
    # ITK counts half a voxel around the moving scan as inside: that rim is 0 here, as in the evaluation of Learn2Reg.
    expected = by_itk(folder, list(names), "M_label.nii.gz", nearest=True)
    parts = [
        part
        for name in ("A_to_F.h5", "M_to_A.h5")
        for part in apply.Chain([str(folder / name)], None).transform().stages
    ]
    axes = [torch.arange(n, dtype=torch.float64) for n in FIXED.shape]
    world = Affine(FIXED.affine).points(torch.cartesian_prod(*axes))
    voxels = Affine(torch.linalg.inv(MOVING.affine)).points(Transform(tuple(parts)).points(world))
    last = torch.tensor(MOVING.shape) - 1
    within = ((voxels >= 0) & (voxels <= last)).all(1).view(FIXED.shape).numpy()
    assert (values(output)[~within] == 0).all() and (expected[~within] != 0).any()
    # Ties and points on the outermost centres go by rounding.
    assert (values(output)[within] != expected[within]).mean() < 1e-3
    oracle = map_coordinates(values(folder / "M_label.nii.gz"), voxels.T.numpy(), order=0).reshape(FIXED.shape)
    assert (values(output) != oracle).mean() < 1e-3


def test_an_image_is_no_label_map(apply: ModuleType, folder: Path) -> None:
    with pytest.raises(InputError, match="no integers: is it an image"):
        run(apply, folder, "--transform", "A_to_F.h5", "--label", "M.nii.gz", "--reference", "F.nii.gz")


# Landmarks


def table(path: Path, points: np.ndarray) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "X", "y", "z", "weight"])
        writer.writerows([[f"p{n}", *point, 0.5 * n] for n, point in enumerate(points.tolist())])


def rows(path: Path) -> tuple[list[list[str]], np.ndarray]:
    with open(path, newline="") as file:
        content = list(csv.reader(file))
    return content, np.array([[float(value) for value in row[1:4]] for row in content[1:]])


POINTS = np.array([[18.0, 22, 19], [25, 18, 21], [20, 20, 20]])


@pytest.mark.parametrize("coordinates", ["ras", "lps"])
def test_landmarks_of_the_fixed_scan_go_through_the_transform(
    apply: ModuleType, folder: Path, coordinates: str
) -> None:
    signs = np.array([-1, -1, 1])
    table(folder / "in.csv", POINTS * (signs if coordinates == "lps" else 1))
    names = ("A_to_F.h5", "M_to_A.h5")
    content, found = rows(
        run(apply, folder, "--transform", *names, "--landmarks", "in.csv", "--coordinates", coordinates)
    )
    composition = composed(folder, names)
    expected = np.array([list(composition.TransformPoint(point)) for point in (POINTS * signs).tolist()])
    np.testing.assert_allclose(found * (1 if coordinates == "lps" else signs), expected, atol=1e-4)
    assert content[0] == ["name", "X", "y", "z", "weight"] and [row[4] for row in content[1:]] == ["0.0", "0.5", "1.0"]


@pytest.mark.parametrize(
    ("source", "target"), [("in.fcsv", "out.fcsv"), ("in.fcsv", "out.mrk.json"), ("in.csv", "out.fcsv")]
)
def test_landmarks_of_slicer(apply: ModuleType, folder: Path, source: str, target: str) -> None:
    lps = POINTS * (-1, -1, 1)
    lines = [f"{n},{','.join(map(str, point))},0,0,0,1,1,1,0,F-{n},," for n, point in enumerate(lps.tolist())]
    (folder / "in.fcsv").write_text("# CoordinateSystem = LPS\n" + "\n".join(lines) + "\n")
    table(folder / "in.csv", POINTS)
    names = ("A_to_F.h5", "M_to_A.h5")
    words = ["--transform", *(str(folder / name) for name in names), "--landmarks", str(folder / source)]
    apply.main([*words, "--output", str(folder / target)])
    composition = composed(folder, names)
    expected = np.array([list(composition.TransformPoint(point)) for point in lps.tolist()])
    found = read_points(folder / target)
    np.testing.assert_allclose(found.points * torch.tensor([-1, -1, 1]), expected, atol=1e-4)
    assert "LPS" in (folder / target).read_text()
    with pytest.raises(InputError, match="in millimetres, but --coordinates voxel was stated"):
        words[-1] = str(folder / "in.fcsv")
        apply.main([*words, "--output", str(folder / "b.csv"), "--coordinates", "voxel"])


def test_landmarks_in_other_coordinates_are_noticed(apply: ModuleType, folder: Path) -> None:
    table(folder / "in.csv", POINTS)
    words = ("--transform", "A_to_F.h5", "--landmarks", "in.csv")
    grids = ("--reference", "F.nii.gz", "--target", "M.nii.gz")
    with pytest.raises(InputError, match=r"3 of 3 points lie outside of the image as voxels, but 3 of 3 inside as RAS"):
        run(apply, folder, *words, *grids, "--coordinates", "voxel")
    # The field says where the fixed scan lies, even if it is not given.
    with pytest.raises(InputError, match="as LPS millimetres, but .* state --coordinates ras"):
        run(apply, folder, *words, "--coordinates", "lps")
    table(folder / "in.csv", np.array([[7.5, 9, 6], [8, 1, 5], [1, 2, 3]]))
    with pytest.raises(
        InputError, match="as RAS millimetres, but 3 of 3 inside as voxels or .* state --coordinates voxel"
    ):
        run(apply, folder, *words)


def test_landmarks_come_back_by_the_inverse(apply: ModuleType, folder: Path) -> None:
    table(folder / "in.csv", POINTS)
    there = run(apply, folder, "--transform", "A_to_F.h5", "M_to_A.h5", "--landmarks", "in.csv")
    there.rename(folder / "there.csv")
    names = ("inverse:M_to_A.h5", "inverse:A_to_F.h5")
    _, back = rows(run(apply, folder, "--transform", *names, "--landmarks", "there.csv"))
    np.testing.assert_allclose(back, POINTS, atol=1e-3)


@pytest.mark.parametrize(("coordinates", "first"), [("voxel", 0), ("voxel_from_1", 1)])
def test_landmarks_in_voxels_need_both_images(apply: ModuleType, folder: Path, coordinates: str, first: int) -> None:
    voxels = np.array([[7.5, 9, 6], [8, 10, 5]])
    table(folder / "in.csv", voxels + first)
    arguments = [
        "--transform",
        "A_to_F.h5",
        "--landmarks",
        "in.csv",
        "--coordinates",
        coordinates,
        "--reference",
        "F.nii.gz",
    ]
    with pytest.raises(InputError, match="give --reference and --target"):
        run(apply, folder, *arguments)
    _, found = rows(run(apply, folder, *arguments, "--target", "M.nii.gz"))
    world = Affine(FIXED.affine).points(torch.from_numpy(voxels))
    moved = apply.Chain([str(folder / "A_to_F.h5")], None).points(world)
    expected = Affine(torch.linalg.inv(MOVING.affine)).points(moved).numpy() + first
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "has the columns a, b; expected x, y and z"),
        ("", "expected x, y and z"),
        ("x,y,z\n1,2,three\n", "line 2: x, y and z have to be numbers"),
        ("x,y,z\n\n1,2,\n", "line 3: x, y and z have to be numbers"),
        ("x,y,z\n1,2\n", "line 2: 2 values, but the header has 3 columns"),
        ("x,y,z\n1,2,nan\n", "line 2: x, y and z have to be numbers"),
        ("x,y,z\n1,2,3,4\n", "line 2: 4 values, but the header has 3 columns"),
        ("a,x,y,z,a\n1,1,2,3,2\n", "two columns of the name 'a'"),
    ],
)
def test_tables_without_points(apply: ModuleType, folder: Path, text: str, message: str) -> None:
    (folder / "in.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        run(apply, folder, "--transform", "A_to_F.h5", "--landmarks", "in.csv")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--moving", "M.nii.gz"), "needs --reference"),
        (("--moving", "M.nii.gz", "--reference", "none.nii.gz"), "does not exist"),
        (("--moving", "none.nii.gz", "--reference", "F.nii.gz"), "does not exist"),
        (("--label", "M_label.nii.gz", "--reference", "F.nii.gz", "--outside", "3"), "outside of a label map is 0"),
        (("--landmarks", "M.nii.gz"), "cannot be read as CSV"),
        (("--moving", "M.nii.gz", "--reference", "F.nii.gz", "--coordinates", "lps"), "--coordinates is for landmarks"),
        (("--label", "M_label.nii.gz", "--reference", "F.nii.gz", "--target", "F.nii.gz"), "--target is for landmarks"),
        ((), "Nothing to do: give --moving, --label or --landmarks, or --save_as"),
        (("--save_as", "mrtrix"), "--save_as needs --reference"),
        (("--save_as", "fsl", "--reference", "F.nii.gz"), "FSL's millimetres and needs both of its scans"),
        (("--save_as", "itk", "--reference", "F.nii.gz", "--label", "M_label.nii.gz"), "--label has no part in it"),
        (("--moving", "rgb.nii.gz", "--reference", "F.nii.gz"), "rgb.nii.gz holds colours"),
        (("--label", "rgb.nii.gz", "--reference", "F.nii.gz"), "rgb.nii.gz holds colours"),
        (("--moving", "nan.nii.gz", "--reference", "F.nii.gz"), "nan.nii.gz holds no finite value"),
    ],
)
def test_mistakes_are_one_sentence(apply: ModuleType, folder: Path, arguments: tuple[str, ...], message: str) -> None:
    save(folder / "nan.nii.gz", np.full(MOVING.shape, np.nan, np.float32), MOVING)
    save(folder / "rgb.nii.gz", np.zeros(MOVING.shape, [("R", "u1"), ("G", "u1"), ("B", "u1")]), MOVING)
    with pytest.raises(InputError, match=message):
        run(apply, folder, "--transform", "A_to_F.h5", *arguments)
    assert not list(folder.glob("*out*"))


def test_nothing_is_overwritten_unasked(
    apply: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder / "out.nii.gz"
    output.write_text("mine")
    words = ["--transform", folder / "A_to_F.h5", "--moving", folder / "M.nii.gz", "--reference", folder / "F.nii.gz"]
    monkeypatch.setattr(sys, "argv", ["apply.py", *map(str, words), "--output", str(output)])
    with pytest.raises(SystemExit) as stopped:
        apply.run_tool(apply.main)
    assert stopped.value.code == 1 and output.read_text() == "mine"
    assert (
        capsys.readouterr().err
        == f"ERROR: {output} exists: choose another name, or replace it with --overwrite true.\n"
    )


def test_a_name_that_is_no_image_is_refused_first(apply: ModuleType, folder: Path) -> None:
    with pytest.raises(InputError, match="written as .nii.gz or .nii"):
        apply.main(
            ["--transform", "none.h5", "--moving", "none.nii", "--reference", "F", "--output", str(folder / "a.jpg")]
        )


def test_volumes_are_not_written_as_png(apply: ModuleType, folder: Path) -> None:
    reference = str(folder / "F.nii.gz")
    with pytest.raises(InputError, match="volumes are written as .nii.gz or .nii, images of two dimensions as .png"):
        apply.main(
            [
                "--transform",
                "none.h5",
                "--moving",
                reference,
                "--reference",
                reference,
                "--output",
                str(folder / "a.png"),
            ]
        )


@pytest.mark.skipif(not DATA.is_dir(), reason="the real data pack is not beside the repository")
def test_voxels_of_real_scans_are_those_of_itk(apply: ModuleType, tmp_path: Path) -> None:
    with open(DATA / "lung" / "elastix_landmarks.csv", newline="") as file:
        pairs = list(csv.DictReader(file))
    table(tmp_path / "in.csv", np.array([[float(row[f"baseline_{axis}"]) for axis in "ijk"] for row in pairs]))
    write_transform(tmp_path / "none.h5", Transform(()))
    scans = [DATA / "lung" / f"elastix_{side}_ct.nii.gz" for side in ("baseline", "followup")]
    arguments = ("--coordinates", "voxel", "--reference", str(scans[0]), "--target", str(scans[1]))
    _, found = rows(run(apply, tmp_path, "--transform", "none.h5", "--landmarks", "in.csv", *arguments))
    followup = itk.imread(str(scans[1]))
    places = [[float(row[f"baseline_{axis}_lps_mm"]) for axis in "xyz"] for row in pairs]
    expected = [list(followup.TransformPhysicalPointToContinuousIndex(place)) for place in places]
    # The table rounds its voxels.
    np.testing.assert_allclose(found, expected, atol=0.26)


# Maps as functions


def functions(folder: Path) -> tuple[FieldMap, FieldMap]:
    """Maps on the grid of F whose file is F_map.pt, with an alignment."""
    torch.manual_seed(0)
    code = HybridCode(torch.randn(1, 3), torch.randn(1, 2, 3, 3, 3))
    fields = ModulatedField(3, (3, 2), 8, 2, 4), ModulatedField(3, (3, 2), 8, 2, 4)
    for field in fields:
        field.frequencies *= 0.1
        torch.nn.init.normal_(field.head.weight, std=0.05)
    there, back = (FieldMap(field, code, FIXED.shape) for field in fields)
    write_map(folder / "F_map.pt", ([there], [back]), 0, FIXED, MATRIX)
    return there, back


@torch.no_grad()
def moved(function: FieldMap, points: Tensor) -> Tensor:
    voxels = Affine(torch.linalg.inv(FIXED.affine)).points(points)
    return Affine(FIXED.affine).points(function(voxels[None].float())[0].double())


def test_landmarks_go_through_a_function_without_a_grid(apply: ModuleType, folder: Path) -> None:
    there, back = functions(folder)
    table(folder / "in.csv", POINTS)
    points = torch.from_numpy(POINTS)
    expected = {
        "F_map.pt": Affine(MATRIX).points(moved(there, points)),
        "inverse:F_map.pt": moved(back, Affine(MATRIX).inverse_points(points)),
    }
    for name, ends in expected.items():
        assert (ends - Affine(MATRIX).points(points)).abs().max() > 0.3
        chain = apply.Chain([inside(folder, name)], None)
        torch.testing.assert_close(chain.points(points), ends, rtol=0, atol=1e-5)
        _, found = rows(run(apply, folder, "--transform", name, "--landmarks", "in.csv"))
        # Four digits are written.
        np.testing.assert_allclose(found, ends, atol=6e-5)
    table(folder / "far.csv", POINTS * [-1, -1, 1])
    with pytest.raises(InputError, match="lie outside of the image as RAS.* --coordinates lps"):
        run(apply, folder, "--transform", "F_map.pt", "--landmarks", "far.csv", "--coordinates", "ras")


def test_images_go_through_a_function_of_each_voxel(apply: ModuleType, folder: Path) -> None:
    there, _ = functions(folder)
    arguments = ("--moving", "M.nii.gz", "--reference", "A.nii.gz", "--outside", "-1")
    output = values(run(apply, folder, "--transform", "F_map.pt", *arguments))
    index = np.indices(MIDDLE.shape).reshape(3, -1).T
    points = Affine(MIDDLE.affine).points(torch.from_numpy(index).double())
    voxels = Affine(torch.linalg.inv(FIXED.affine)).points(points)
    inside = voxels.clamp(torch.zeros(3), torch.tensor(FIXED.shape) - 1)
    beyond = (voxels - inside) @ FIXED.affine[:3, :3].T
    ends = beyond + moved(there, Affine(FIXED.affine).points(inside))
    places = Affine(torch.linalg.inv(MOVING.affine) @ MATRIX.double()).points(ends)
    expected = map_coordinates(values(folder / "M.nii.gz"), places.T.numpy(), order=1, mode="nearest")
    well = ((places > 0) & (places < torch.tensor(MOVING.shape) - 1)).all(1).numpy()
    assert well.mean() > 0.3
    np.testing.assert_allclose(output.reshape(-1)[well], expected[well], atol=3e-4)

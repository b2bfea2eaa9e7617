# SPDX-License-Identifier: Apache-2.0
"""Two images of two dimensions, NIfTI or PNG, registered in this process and read back by independent readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.data import LoadSubjectd, PairSampler, ScanPairDataset, registration_request
from common.engine import PrepareRegistrationBatch, RegistrationFolder, RegistrationInferer, RegistrationWriter
from common.evaluation.pair_files import LandmarkFiles, PairFiles
from common.evaluation.pair_measure import Measures, measure_pair
from common.io.apply import Chain, move_landmarks, warp_file
from common.io.transforms import Affine, read_grid, read_transform
from common.metrics import dice_l2r, hd95_l2r, jacobian_statistics, nda
from common.networks.nephi import CONFIGURATIONS, NePhi
from common.spatial.world import working_grid


class Wave(nn.Module):
    """A smooth field of at most two pixels that grows from the border inwards, and its opposite as a map."""

    def forward(self, image: Tensor, details: Any = False) -> Any:
        assert image.ndim == 4
        across, up = (torch.sin(torch.linspace(0, torch.pi, n)) for n in image.shape[2:])
        bump = across[:, None] * up
        ddf = torch.stack([2 * bump, -bump])[None]
        also = {"inverse_ddf": -ddf, "weight_map": ddf[:, :1], "deviation": ddf.abs()}
        return {"ddf": ddf, **also} if details else ddf


def picture(size: tuple[int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth noise of 16 bits and a box as label 3, (rows, columns)."""
    noise = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(noise, size, mode="bilinear", align_corners=True)[0, 0].numpy()
    label = np.zeros(size, np.uint8)
    label[size[0] // 4 : -(size[0] // 4), size[1] // 4 : -(size[1] // 3)] = 3
    return (image * 60000 + 100).astype(np.uint16), label


def save_png(folder: Path, name: str, size: tuple[int, int], seed: int) -> dict[str, str]:
    for kind, array in zip(("", "_label"), picture(size, seed), strict=True):
        Image.fromarray(array).save(folder / f"{name}{kind}.png")
    return {name: str(folder / f"{name}.png"), f"{name}_label": str(folder / f"{name}_label.png")}


def save_nifti(folder: Path, name: str, size: tuple[int, int], seed: int, affine: np.ndarray) -> dict[str, str]:
    for kind, array in zip(("", "_label"), picture(size, seed), strict=True):
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), affine), folder / f"{name}{kind}.nii.gz")
    return {name: str(folder / f"{name}.nii.gz"), f"{name}_label": str(folder / f"{name}_label.nii.gz")}


def turned(angle: float, spacing: tuple[float, float], origin: tuple[float, float], height: float) -> np.ndarray:
    affine = np.diag([*spacing, 7.0, 1.0])
    cosine, sine = np.cos(angle), np.sin(angle)
    affine[:2, :2] = np.array([[cosine, -sine], [sine, cosine]]) @ affine[:2, :2]
    affine[:3, 3] = *origin, height
    return affine


def run(files: dict[str, str], out: Path, network: nn.Module | None = None, **arguments: Any) -> None:
    request = registration_request("", **files)
    dataset = ScanPairDataset(request.subjects, Compose([LoadSubjectd()]), **arguments)
    folder = RegistrationFolder(out, {})
    sampler = PairSampler(dataset, "listed", pairs=folder.remaining(request), drop_last=False)
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, sampler=sampler),
        network=network or Wave(),
        inferer=RegistrationInferer(["inverse_ddf", "*_map", "map", "inverse_map", "deviation"]),
        prepare_batch=PrepareRegistrationBatch(),
        val_handlers=[RegistrationWriter(folder)],
    ).run()


FILES = (
    "ddf.nii.gz", "displacement.nii.gz", "inverse_ddf.nii.gz", "jacobian.nii.gz", "panel.png", "transform.h5",
    "uncertainty.nii.gz", "warped.nii.gz", "warped_label.nii.gz", "weight_map.nii.gz",
)  # fmt: skip


@pytest.fixture(scope="module", params=["png", "nifti"])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "png":
        files = save_png(folder, "moving", (30, 34), 1) | save_png(folder, "fixed", (26, 32), 2)
    else:
        files = save_nifti(folder, "moving", (30, 34), 1, turned(0.1, (1.1, 0.9), (-15, -14), 40.0))
        files |= save_nifti(folder, "fixed", (26, 32), 2, turned(-0.2, (-1.2, 1.0), (15, -16), -3.0))
    run(files, folder / "out", spacing=(1.0, 1.0))
    return folder / "out", files


def test_all_files_are_of_two_dimensions(result: tuple[Path, dict[str, str]]) -> None:
    out, files = result
    is_png = files["fixed"].endswith("png")
    names = {path.name.removeprefix("moving_to_fixed_") for path in out.iterdir()} - {"pairs.csv", "provenance.json"}
    assert names == {*FILES, *(("warped.png", "warped_label.png") if is_png else ())} | (names & {"inverse.h5"})
    grid = itk.imread(files["fixed"])
    for name in ("warped", "warped_label", "jacobian", "weight_map", "uncertainty", "displacement"):
        image = itk.imread(str(out / f"moving_to_fixed_{name}.nii.gz"))
        assert image.GetImageDimension() == 2
        # Spacing, origin and direction come by a NIfTI header of single precision.
        for place in ("GetSpacing", "GetOrigin"):
            np.testing.assert_allclose(getattr(image, place)(), getattr(grid, place)(), atol=1e-5)
        np.testing.assert_allclose(np.asarray(image.GetDirection()), np.asarray(grid.GetDirection()), atol=1e-6)
    shape = (32, 26) if is_png else (26, 32)
    assert nibabel.load(out / "moving_to_fixed_ddf.nii.gz").shape == (*shape, 2)
    weight, uncertainty = (
        np.asarray(nibabel.load(out / f"moving_to_fixed_{name}.nii.gz").dataobj)
        for name in ("weight_map", "uncertainty")
    )
    # Components of which the one is half of the other, in pixels of 1 mm; both files are float32.
    np.testing.assert_allclose(uncertainty, weight * 1.25**0.5, atol=1e-5)
    entry = json.loads((out / "provenance.json").read_text())["pairs"]["moving_to_fixed"]
    assert len(entry["working_size"]) == len(entry["working_spacing"]) == 2 and entry["labels"] == 1
    if is_png:
        rounded = np.asarray(Image.open(out / "moving_to_fixed_warped.png"))
        exact = np.asarray(nibabel.load(out / "moving_to_fixed_warped.nii.gz").dataobj).T
        np.testing.assert_array_equal(rounded, np.rint(exact))


def test_itk_resamples_to_the_same_image(result: tuple[Path, dict[str, str]]) -> None:
    out, files = result
    (transform,) = itk.transformread(str(out / "moving_to_fixed_transform.h5"))
    assert transform.GetInputSpaceDimension() == 2
    moving, fixed = (itk.imread(files[name], itk.F) for name in ("moving", "fixed"))
    outside = float(itk.array_view_from_image(moving).min())
    image = itk.resample_image_filter(
        moving, transform=transform, use_reference_image=True, reference_image=fixed, default_pixel_value=outside
    )
    ours = np.asarray(nibabel.load(out / "moving_to_fixed_warped.nii.gz").dataobj).T
    difference = np.abs(itk.array_from_image(image) - ours)
    # Values up to 60000; a coordinate on the edge of the scan may fall to either side.
    assert np.quantile(difference, 0.99) < 5 and float((difference > 100).mean()) < 5e-3
    assert float(np.abs(ours - itk.array_from_image(fixed)).mean()) > 1000


def test_apply_and_evaluation_agree_with_inference(result: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    out, files = result
    prefix = str(out / "moving_to_fixed_")
    for name in ("transform.h5", "displacement.nii.gz", "ddf.nii.gz"):
        for kind in ("", "_label"):
            chain = Chain([prefix + name], read_grid(files["fixed"]))
            warp_file(files[f"moving{kind}"], tmp_path / "w.nii", chain, files["fixed"], is_label=bool(kind))
            found, expected = nibabel.load(tmp_path / "w.nii"), nibabel.load(f"{prefix}warped{kind}.nii.gz")
            assert found.shape == expected.shape
            difference = np.abs(np.asarray(found.dataobj) - np.asarray(expected.dataobj).astype(float))
            assert np.quantile(difference, 0.99) < 5
    case = measure_pair(pair_of(prefix, files), Measures(hd95="millimetres"))
    entry = json.loads((out / "provenance.json").read_text())["pairs"]["moving_to_fixed"]
    assert case["dice"] == pytest.approx(entry["dice"]["registered"], abs=1e-6)
    warped, fixed = (
        torch.from_numpy(np.asarray(nibabel.load(path).dataobj, np.int32))[None, None]
        for path in (f"{prefix}warped_label.nii.gz", _as_nifti(files["fixed_label"], tmp_path))
    )
    spacing = nibabel.load(f"{prefix}warped.nii.gz").header.get_zooms()
    assert case["dice"] == pytest.approx(float(dice_l2r(warped, fixed, [3])), abs=1e-6)
    assert case["hd95"] == pytest.approx(float(hd95_l2r(warped, fixed, [3], spacing=spacing)), abs=1e-4)
    ddf = torch.from_numpy(np.asarray(nibabel.load(f"{prefix}ddf.nii.gz").dataobj)).movedim(-1, 0)[None]
    assert case["fold_fraction"] == 100 * float(jacobian_statistics(ddf).fold_fraction)
    assert case["ndv"] == pytest.approx(float(nda(ddf).percent))


def pair_of(prefix: str, files: dict[str, str], landmarks: tuple[LandmarkFiles, ...] = ()) -> PairFiles:
    images, labels = ((files[f"moving{kind}"], files[f"fixed{kind}"]) for kind in ("", "_label"))
    return PairFiles("m", "f", f"{prefix}ddf.nii.gz", *images, *labels, landmarks=landmarks)


def test_landmarks_have_two_coordinates(result: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    out, files = result
    prefix = str(out / "moving_to_fixed_")
    fixed, moving = tmp_path / "fixed.csv", tmp_path / "moving.csv"
    fixed.write_text("name,x,y\na,10,9\nb,14.5,12\nc,8.25,15\n")
    chain = Chain([f"{prefix}transform.h5"], None)
    assert move_landmarks(fixed, moving, chain, "voxel", files["fixed"], files["moving"]) == (3, "voxel")
    (transform,) = itk.transformread(f"{prefix}transform.h5")
    grids = [itk.imread(files[name]) for name in ("fixed", "moving")]
    lines = [line.split(",") for line in moving.read_text().splitlines()]
    assert lines[0] == ["name", "x", "y"] and lines[2][0] == "b"
    for line, point in zip(lines[1:], ((10, 9), (14.5, 12), (8.25, 15)), strict=True):
        corner, *ends = (np.array(grids[0].TransformIndexToPhysicalPoint(index)) for index in ([0, 0], [1, 0], [0, 1]))
        place = corner + sum(step * (end - corner) for step, end in zip(point, ends, strict=True))
        place = transform.TransformPoint(place.tolist())
        expected = grids[1].TransformPhysicalPointToContinuousIndex(place)
        # The table has four digits, and the field in the transform is interpolated in single precision.
        np.testing.assert_allclose([float(number) for number in line[1:]], list(expected), atol=1e-3)
    case = measure_pair(
        pair_of(prefix, files, (LandmarkFiles("tre", str(moving), str(fixed)),)), Measures(hd95=None, trust=True)
    )
    # Between pixels the measure follows the field by cubic splines, apply linearly.
    assert case["tre"] < 0.05 and case["tre_before"] > 0.5


def test_a_map_that_is_a_function_moves_landmarks_as_the_network_does(
    result: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    _, files = result
    torch.manual_seed(0)
    network = NePhi(2, **CONFIGURATIONS["tiny"]).eval()
    for part in (network.field, network.inverse_field):
        part.frequencies *= 0.2
        nn.init.normal_(part.head.weight, std=0.05)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # The network sees the pixels of the fixed image, of values that make no wild code.
    run(files, tmp_path / "out", network, spacing=None, intensity=lambda image: image / 60000)
    prefix, grids = str(tmp_path / "out" / "moving_to_fixed_"), [read_grid(files[name]) for name in ("fixed", "moving")]
    index = torch.tensor([[10.0, 9, 0], [14, 12, 0], [8, 15, 0], [9.25, 11.75, 0]], dtype=torch.float64)
    points = Affine(grids[0].affine).points(index)
    exact, dense = (read_transform(prefix + name) for name in ("map.pt", "transform.h5"))
    # Sines of positions in single precision, and a field that is stored in it.
    np.testing.assert_allclose(exact.points(points)[:3], dense.points(points)[:3], atol=1e-4)
    assert (exact.points(points) - dense.points(points))[3].norm() > 1e-3
    assert (exact.points(points) - points).norm(dim=1).max() > 0.3
    working = Affine(working_grid(grids[0], None).affine)
    with torch.no_grad():
        maps = network(seen[0], details=["map", "inverse_map"])
        inside = working.inverse_points(points)[None, :, :2].float()
        ends = [F.pad(maps[name](inside)[0].double(), (0, 1)) for name in ("map", "inverse_map")]
    np.testing.assert_allclose(exact.points(points), working.points(ends[0]), atol=1e-5)
    np.testing.assert_allclose(exact.inverse_points(points), working.points(ends[1]), atol=1e-5)
    table, moved = tmp_path / "fixed.csv", tmp_path / "moving.csv"
    table.write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y, _ in index.tolist()))
    move_landmarks(table, moved, Chain([f"{prefix}map.pt"], None), "voxel", files["fixed"], files["moving"])
    found = np.loadtxt(moved, delimiter=",", skiprows=1)
    np.testing.assert_allclose(found, Affine(grids[1].affine).inverse_points(exact.points(points))[:, :2], atol=6e-5)


def _as_nifti(path: str, folder: Path) -> str:
    if not path.endswith("png"):
        return path
    nibabel.save(nibabel.Nifti1Image(np.asarray(Image.open(path)).T, np.eye(4)), folder / "l.nii")
    return str(folder / "l.nii")

# SPDX-License-Identifier: Apache-2.0
"""What inference writes, read back by independent readers."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import LoadSubjectd, PairSampler, ScanPairDataset, registration_request
from common.data.request import Request
from common.engine import PrepareRegistrationBatch, RegistrationFolder, RegistrationInferer, RegistrationWriter
from common.io.tables import read_csv
from common.io.transforms import Affine, read_grid, read_transform
from common.networks.nephi import CONFIGURATIONS, NePhi
from common.spatial import compose, invert
from common.spatial.world import working_grid

SUFFIXES = (
    "ddf.nii.gz", "displacement.nii.gz", "inverse.h5", "jacobian.nii.gz", "panel.png", "transform.h5",
    "warped.nii.gz", "warped_label.nii.gz",
)  # fmt: skip


class Wave(nn.Module):
    """A smooth field of at most two voxels that grows from the border inwards."""

    def forward(self, image: Tensor) -> Tensor:
        axes = [torch.sin(torch.linspace(0, torch.pi, n)) for n in image.shape[2:]]
        bump = axes[0][:, None, None] * axes[1][:, None] * axes[2]
        return torch.stack([2 * bump, -bump, 0.7 * bump])[None]


def oblique(spacing: tuple[float, float, float], origin: tuple[float, float, float], flip: int) -> np.ndarray:
    cosine, sine = np.cos(0.3), np.sin(0.3)
    turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
    signs = np.ones(3)
    signs[flip] = -1
    affine = np.eye(4)
    affine[:3, :3] = turn * signs * spacing
    affine[:3, 3] = origin
    return affine


def scan(folder: Path, name: str, shape: tuple[int, int, int], affine: np.ndarray, seed: int) -> dict[str, str]:
    """Smooth noise with its middle at the origin of the world, and a box as label 3."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, 6, 6, 6, generator=generator)
    image = torch.nn.functional.interpolate(noise, shape, mode="trilinear", align_corners=True)[0, 0].numpy() * 900 + 10
    affine[:3, 3] -= affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    label = np.zeros(shape, np.int16)
    label[tuple(slice(n // 4, -(n // 4)) for n in shape)] = 3
    for kind, array in (("image", image), ("label", label)):
        nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{name}_{kind}.nii.gz")
    return {kind: str(folder / f"{name}_{kind}.nii.gz") for kind in ("image", "label")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    tmp_path = tmp_path_factory.mktemp("scans")
    moving = scan(tmp_path, "m", (26, 24, 22), oblique((1.1, 1.3, 1.2), (1.0, -2.0, 0.5), flip=0), 1)
    fixed = scan(tmp_path, "f", (20, 18, 16), oblique((1.5, 1.2, 1.6), (0.0, 0.0, 0.0), flip=1), 2)
    return {
        "moving": moving["image"], "moving_label": moving["label"],
        "fixed": fixed["image"], "fixed_label": fixed["label"],
    }  # fmt: skip


class Both(nn.Module):
    """The field of :class:`Wave`, its inverse or something else under that name, and two maps."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error

    def forward(self, image: Tensor, details: Any = False) -> dict[str, Tensor]:
        ddf = Wave()(image)
        inverse = invert(ddf)[0] + self.error
        return {"ddf": ddf, "inverse_ddf": inverse, "weight_map": image[:, 1:], "offset_map": 2 * ddf}


def run(
    request: Request,
    folder: RegistrationFolder,
    alignment: Tensor | None = None,
    network: nn.Module | None = None,
    spacing: tuple[float, float, float] | None = (1.4, 1.4, 1.4),
    **arguments: Any,
) -> None:
    dataset: Any = ScanPairDataset(request.subjects, Compose([LoadSubjectd()]), spacing=spacing)
    if alignment is not None:
        dataset._aligned = lambda *_: (alignment, {"similarity_before": 0.1, "similarity_after": 0.2})
    sampler = PairSampler(dataset, "listed", pairs=folder.remaining(request), drop_last=False)
    details = ["inverse_ddf", "*_map", "map", "inverse_map", "deviation"]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1, sampler=sampler),
        network=network or Wave(),
        inferer=RegistrationInferer() if network is None else RegistrationInferer(details),
        prepare_batch=PrepareRegistrationBatch(),
        val_handlers=[RegistrationWriter(folder, **arguments)],
    ).run()


def tilt() -> Tensor:
    """A small affine map between the worlds."""
    alignment = torch.eye(4, dtype=torch.float64)
    alignment[:3, :3] += 0.05 * torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    alignment[:3, 3] = torch.tensor([1.5, -0.8, 0.6])
    return alignment


def array(path: Path | str) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def result(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("registered") / "out"
    run(registration_request("", **files), RegistrationFolder(out, {}), tilt())
    return out


class Broken(nn.Module):
    """A wave, one of whose outputs has a voxel that is no number."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, image: Tensor, details: Any = False) -> dict[str, Tensor]:
        outputs = Both()(image)
        outputs[self.name] = outputs[self.name].clone()
        outputs[self.name][0, 0, 4, 4, 4] = torch.nan if self.name == "ddf" else -torch.inf
        return outputs


@pytest.mark.parametrize("name", ["ddf", "weight_map"])
def test_nothing_is_written_of_a_pair_whose_field_is_not_finite(
    name: str, files: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="NaN or infinite for m_image to f_image"):
        run(registration_request("", **files), RegistrationFolder(tmp_path / "out", {}), network=Broken(name))
    assert not (tmp_path / "out").exists()


def test_every_file_of_a_pair_is_there(result: Path) -> None:
    names = sorted(path.name for path in result.iterdir())
    assert names == sorted(["pairs.csv", "provenance.json", *(f"m_image_to_f_image_{suffix}" for suffix in SUFFIXES)])
    record = json.loads((result / "provenance.json").read_text())
    pair = record["pairs"]["m_image_to_f_image"]
    assert set(pair["dice"]) == {"header", "affine", "registered"} and pair["labels"] == 1
    assert pair["affine"]["similarity_after"] == 0.2 and {"versions", "machine", "settings"} <= set(record)
    np.testing.assert_allclose(pair["alignment"], tilt().numpy())
    (row,) = read_csv(result / "pairs.csv")
    assert (row["fixed"], row["moving"]) == ("f_image", "m_image") and (result / row["field"]).is_file()


def test_results_lie_on_the_fixed_grid_with_its_header(result: Path, files: dict[str, str]) -> None:
    fixed = nibabel.load(files["fixed"])
    for suffix in ("warped.nii.gz", "warped_label.nii.gz", "jacobian.nii.gz", "ddf.nii.gz", "displacement.nii.gz"):
        image = nibabel.load(result / f"m_image_to_f_image_{suffix}")
        assert image.shape[:3] == fixed.shape
        np.testing.assert_allclose(image.affine, fixed.affine, atol=1e-5)
    label = nibabel.load(result / "m_image_to_f_image_warped_label.nii.gz")
    assert label.get_data_dtype().kind in "iu" and set(np.unique(array(label.get_filename()))) == {0, 3}


def test_itk_resamples_to_the_same_image(result: Path, files: dict[str, str]) -> None:
    (transform,) = itk.transformread(str(result / "m_image_to_f_image_transform.h5"))
    moving, fixed = (itk.imread(files[name], itk.F) for name in ("moving", "fixed"))
    outside = float(array(files["moving"]).min())
    image = itk.resample_image_filter(
        moving, transform=transform, use_reference_image=True, reference_image=fixed, default_pixel_value=outside
    )
    found = itk.array_from_image(image).transpose(2, 1, 0)
    ours = array(result / "m_image_to_f_image_warped.nii.gz")
    difference = np.abs(found - ours)
    # Values up to 910; a coordinate on the edge of the scan may fall to either side.
    assert np.quantile(difference, 0.999) < 0.05 and float((difference > 1).mean()) < 1e-3


def test_the_three_forms_are_one_transform(result: Path) -> None:
    prefix = str(result / "m_image_to_f_image_")
    points = torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (200, 3)))
    mapped = [
        read_transform(prefix + name).points(points) for name in ("transform.h5", "displacement.nii.gz", "ddf.nii.gz")
    ]
    np.testing.assert_allclose(mapped[1], mapped[0], atol=2e-3)
    np.testing.assert_allclose(mapped[2], mapped[0], atol=2e-3)


def test_the_inverse_leads_back(result: Path) -> None:
    prefix = str(result / "m_image_to_f_image_")
    points = torch.from_numpy(np.random.default_rng(1).uniform(-5, 5, (200, 3)))
    there = read_transform(prefix + "transform.h5").points(points)
    # Between the voxels the inverse is interpolated, too: a twentieth of a voxel of 1.6 mm.
    np.testing.assert_allclose(read_transform(prefix + "inverse.h5").points(there), points, atol=0.08)


def test_an_interrupted_run_goes_on_with_the_missing_pairs(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = registration_request("", **files)
    both = Request(request.subjects, [(0, 1), (1, 0)])
    out = tmp_path / "out"
    run(request, RegistrationFolder(out, {"spacing": 1}))
    first = (out / "m_image_to_f_image_ddf.nii.gz").stat().st_mtime_ns
    # What a kill leaves behind of the second pair.
    (out / "f_image_to_m_image_ddf.nii.gz").write_bytes(b"half")
    with caplog.at_level(logging.INFO):
        run(both, RegistrationFolder(out, {"spacing": 1}))
    assert "1 pair(s) are finished" in caplog.text
    assert (out / "m_image_to_f_image_ddf.nii.gz").stat().st_mtime_ns == first
    assert array(out / "f_image_to_m_image_ddf.nii.gz").shape == (26, 24, 22, 3)
    assert len(json.loads((out / "provenance.json").read_text())["pairs"]) == 2
    with pytest.raises(InputError, match="registered in .* already.*--overwrite true"):
        RegistrationFolder(out, {"spacing": 1}).remaining(both)
    assert len(RegistrationFolder(out, {"spacing": 1}, overwrite=True).remaining(both)) == 2


def test_a_scan_that_cannot_be_used_leaves_nothing(files: dict[str, str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(b"no image")
    with pytest.raises(InputError, match="damaged.nii.gz"):
        run(
            registration_request("", fixed=files["fixed"], moving=str(damaged)),
            RegistrationFolder(tmp_path / "out", {}),
        )
    assert not (tmp_path / "out").exists()


def test_nothing_of_others_is_overwritten(files: dict[str, str], tmp_path: Path) -> None:
    request = registration_request("", **files)
    out = tmp_path / "out"
    out.mkdir()
    (out / "m_image_to_f_image_ddf.nii.gz").write_bytes(b"")
    with pytest.raises(InputError, match="m_image_to_f_image_ddf.nii.gz exists"):
        RegistrationFolder(out, {}).remaining(request)
    (out / "provenance.json").write_text("{}")
    with pytest.raises(InputError, match="not the record of registrations"):
        RegistrationFolder(out, {}).remaining(request)


def test_other_settings_weights_or_scans_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    request = registration_request("", **files)
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"one")
    settings = {"ckpt_path": str(weights), "affine": False}
    folder = RegistrationFolder(tmp_path / "out", settings)
    run(request, folder)
    moved = tmp_path / "elsewhere.pt"
    moved.write_bytes(b"one")
    with pytest.raises(InputError, match="already"):
        RegistrationFolder(tmp_path / "out", {"ckpt_path": str(moved), "affine": False}).remaining(request)
    weights.write_bytes(b"two")
    with pytest.raises(InputError, match="another ckpt_path"):
        RegistrationFolder(tmp_path / "out", settings).remaining(request)
    other = [{**subject, "image": "/elsewhere/" + Path(subject["image"]).name} for subject in request.subjects]
    folder = RegistrationFolder(tmp_path / "out", {"ckpt_path": str(moved), "affine": False})
    with pytest.raises(InputError, match="another image of m_image_to_f_image"):
        folder.remaining(Request(other, request.pairs))


def test_two_pairs_of_one_name_are_refused(files: dict[str, str], tmp_path: Path) -> None:
    request = registration_request("", **files)
    with pytest.raises(InputError, match="two pairs m_image_to_f_image"):
        RegistrationFolder(tmp_path, {}).remaining(Request(request.subjects, [(0, 1), (0, 1)]))


def test_dice_counts_groups_where_there_is_a_table(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    lookup = {0: 0, 3: 7}
    run(registration_request("", **files), RegistrationFolder(out, {}), labels=[7, 8], lookup=lookup)
    pair = json.loads((out / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    assert set(pair["dice"]) == {"header", "registered"} and 0.3 < pair["dice"]["header"] <= 1


def test_labels_of_any_numbers_are_warped_and_counted(files: dict[str, str], tmp_path: Path) -> None:
    numbers = {0: 0, 3: 614454277}
    for side in ("moving", "fixed"):
        file = nibabel.load(files[f"{side}_label"])
        label = np.vectorize(numbers.get)(np.asarray(file.dataobj)).astype(np.int64)
        label[:2] = -1
        nibabel.save(nibabel.Nifti1Image(label.astype(np.int32), file.affine), tmp_path / f"{side}.nii")
    labels = {f"{side}_label": str(tmp_path / f"{side}.nii") for side in ("moving", "fixed")}
    run(registration_request("", **{**files, **labels}), RegistrationFolder(tmp_path / "out", {}))
    pair = json.loads((tmp_path / "out" / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    assert pair["labels"] == 2
    warped = array(tmp_path / "out" / "m_image_to_f_image_warped_label.nii.gz")
    assert set(np.unique(warped)) == {-1, 0, 614454277}


def test_pair_without_a_common_label_is_recorded_without_dice(
    files: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(registration_request("", **files), RegistrationFolder(tmp_path, {}), labels=[5])
    pair = json.loads((tmp_path / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    assert "dice" not in pair and "no label in common" in caplog.text


@pytest.mark.parametrize(("error", "source"), [(0.0, "network"), (0.3, "solver")])
def test_inverse_and_maps_of_the_network_are_written(
    files: dict[str, str], result: Path, tmp_path: Path, error: float, source: str
) -> None:
    run(registration_request("", **files), RegistrationFolder(tmp_path, {}), tilt(), Both(error))
    pair = json.loads((tmp_path / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    assert pair["inverse_from"] == source and pair["inverse_residual_voxels"] < 0.05
    prefix = str(tmp_path / "m_image_to_f_image_")
    points = torch.from_numpy(np.random.default_rng(1).uniform(-5, 5, (200, 3)))
    there = read_transform(prefix + "transform.h5").points(points)
    np.testing.assert_allclose(read_transform(prefix + "inverse.h5").points(there), points, atol=0.08)
    # The way back that the network returned, through the same affine map: the whole transform and it cancel out.
    ddf, back = (torch.from_numpy(array(prefix + f"{n}ddf.nii.gz")).movedim(-1, 0)[None] for n in ("", "inverse_"))
    inside = (slice(None), slice(3, -3), slice(3, -3), slice(3, -3))
    miss = compose(back, ddf)[0][inside]
    # Of linear interpolation between voxels, and what it was made wrong by, in voxels of the network's own grid.
    wrong = error * 1.4 / torch.tensor([1.5, 1.2, 1.6])
    assert (miss.abs() - wrong.view(3, 1, 1, 1)).abs().max() < 0.08
    found = pair["inverse_consistency"]
    assert found["mean_voxels"] == pytest.approx(float(wrong.norm()), abs=0.02) and found["mean_voxels"] < 0.6
    assert found["mean_voxels"] <= found["largest_voxels"] < float(wrong.norm()) + 0.15
    # Components of 0.3 voxels of 1.4 mm each.
    assert found["mean_millimetres"] == pytest.approx(error * 1.4 * 3**0.5, abs=0.03)
    assert read_csv(tmp_path / "pairs.csv")[0]["inverse"] == "m_image_to_f_image_inverse_ddf.nii.gz"
    weight, offset, fixed = (
        array(prefix + "weight_map.nii.gz"),
        array(prefix + "offset_map.nii.gz"),
        array(files["fixed"]),
    )
    assert weight.shape == fixed.shape and offset.shape == (*fixed.shape, 3)
    assert np.corrcoef(weight.ravel(), fixed.ravel())[0, 1] > 0.95
    wide, narrow = (Image.open(path).size for path in (prefix + "panel.png", next(result.glob("*panel.png"))))
    assert wide[0] > 1.2 * narrow[0]


class Unsure(nn.Module):
    """Says of each component how far off it may be: the same everywhere but beyond the middle of the first axis."""

    deviation = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1, 1)

    def forward(self, image: Tensor, details: Any = False) -> dict[str, Tensor]:
        found = self.deviation.expand(1, 3, *image.shape[2:]).clone()
        found[:, :, image.shape[2] // 2 + 2 :] *= 2
        return {"ddf": Wave()(image), "deviation": found}


def test_uncertainty_is_written_in_millimetres_on_the_fixed_grid(
    files: dict[str, str], result: Path, tmp_path: Path
) -> None:
    spacing = (1.3, 1.1, 1.9)
    run(registration_request("", **files), RegistrationFolder(tmp_path, {}), tilt(), Unsure(), spacing)
    prefix = str(tmp_path / "m_image_to_f_image_")
    pair = json.loads((tmp_path / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    written, fixed = (nibabel.load(path) for path in (prefix + "uncertainty.nii.gz", files["fixed"]))
    assert written.shape == fixed.shape and f"{Path(prefix).name}uncertainty.nii.gz" in pair["files"]
    np.testing.assert_array_equal(written.affine, fixed.affine)
    sizes = np.array([0.1, 0.2, 0.3]) * pair["working_spacing"]
    values = array(prefix + "uncertainty.nii.gz")
    # Both lines: a few float32 roundings of 6e-8 in interpolation and norm.
    np.testing.assert_allclose(values[:9], np.linalg.norm(sizes), rtol=1e-6)
    np.testing.assert_allclose(values[-5:], 2 * np.linalg.norm(sizes), rtol=1e-6)
    wide, narrow = (Image.open(path).size for path in (prefix + "panel.png", next(result.glob("*panel.png"))))
    assert wide[0] > 1.1 * narrow[0]


def test_a_map_that_is_a_function_is_written_and_agrees_with_network_and_field(
    files: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = NePhi(**CONFIGURATIONS["tiny"]).eval()
    for part in (network.field, network.inverse_field):
        part.frequencies *= 0.2
        nn.init.normal_(part.head.weight, std=0.05)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    # With the fixed scan's own voxels, so that the field is known at their centres.
    run(registration_request("", **files), RegistrationFolder(tmp_path, {}), tilt(), network, spacing=None)
    prefix = str(tmp_path / "m_image_to_f_image_")
    exact, dense = (read_transform(prefix + name) for name in ("map.pt", "transform.h5"))
    grid = read_grid(files["fixed"])
    index = torch.from_numpy(np.indices(grid.shape).reshape(3, -1).T).double()
    centres, between = (Affine(grid.affine).points(index + shift) for shift in (0, 0.4))
    # Positions of up to 20 mm in single precision, and sines of them.
    np.testing.assert_allclose(exact.points(centres), dense.points(centres), atol=5e-5)
    assert (exact.points(between) - dense.points(between)).norm(dim=1).median() > 0.01
    working = working_grid(grid, None)
    with torch.no_grad():
        maps = network(seen[0], details=["map", "inverse_map"])
        voxels = (
            Affine(torch.linalg.inv(working.affine))
            .points(between)
            .clamp(torch.zeros(3), torch.tensor(working.shape) - 1)
        )
        there, back = (
            Affine(working.affine).points(maps[n](voxels[None].float())[0].double()) for n in ("map", "inverse_map")
        )
    inside = Affine(working.affine).points(voxels)
    # Both ways the network computes positions of up to 20 voxels in single precision, in pieces of other sizes.
    np.testing.assert_allclose(exact.points(inside), Affine(tilt()).points(there), atol=1e-5)
    np.testing.assert_allclose(exact.inverse_points(Affine(tilt()).points(inside)), back, atol=1e-5)
    record = json.loads((tmp_path / "provenance.json").read_text())["pairs"]["m_image_to_f_image"]
    assert "m_image_to_f_image_map.pt" in record["files"]

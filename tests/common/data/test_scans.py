# SPDX-License-Identifier: Apache-2.0
"""Scans on grids of their own, brought to the grid that a network sees."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRangePercentiles
from torch import Tensor
from torch.utils.data import DataLoader

from common.alignment.affine import Alignment
from common.checks import InputError
from common.data import LoadSubjectd, PairSampler, ScanPairDataset, registration_request

RAS = np.diag([2.0, 2.0, 2.0, 1.0])
LAS = np.array([[-1.0, 0, 0, 39], [0, 0, 1.5, -2], [0, -1.2, 0, 41], [0, 0, 0, 1]])


def blob(affine: np.ndarray, shape: tuple[int, int, int], centre: tuple[float, float, float]) -> np.ndarray:
    """An ellipsoid in the world, smooth at its edge, so that it looks the same on every grid."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    world = voxels @ affine[:3, :3].T + affine[:3, 3]
    distance = np.linalg.norm((world - centre) / np.array([12.0, 9.0, 7.0]), axis=-1)
    return (1000 / (1 + np.exp(8 * (distance - 1)))).astype(np.float32)


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> dict[str, Path]:
    fixed = blob(RAS, (20, 22, 18), (20, 20, 18))
    moving = blob(LAS, (40, 36, 30), (20, 20, 18))
    return {
        "fixed": save(tmp_path / "f.nii.gz", fixed, RAS),
        "moving": save(tmp_path / "m.nii.gz", moving, LAS),
        "moving_label": save(tmp_path / "ml.nii.gz", (moving > 500).astype(np.int16), LAS),
    }


def pair(scans: dict[str, Path], **arguments: Any) -> dict[str, Any]:
    request = registration_request("", **{name: str(path) for name, path in scans.items()})
    dataset = ScanPairDataset(request.subjects, Compose([LoadSubjectd()]), **arguments)
    return dict(dataset[request.pairs[0]])


def test_both_scans_meet_on_the_fixed_grid_by_their_headers(scans: dict[str, Path]) -> None:
    item = pair(scans)
    assert item["moving"].shape == item["fixed"].shape == (1, 20, 22, 18)
    torch.testing.assert_close(item["affine"], torch.from_numpy(RAS))
    torch.testing.assert_close(item["fixed"], item["fixed_scan"], rtol=0, atol=1e-3)
    difference = (item["moving"] - item["fixed"]).abs()
    assert float(difference.mean()) < 5 and float(difference.max()) < 120


def test_the_network_sees_what_label_maps_cover_on_a_grid_of_its_own_size(
    scans: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: dict[str, Any] = {"spacing": (2, 2, 2), "spatial_size": (24, 20, 18), "affine": True}
    # What is found does not matter here: masks go the way of their images.
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([4.0, -2, 0])
    facts = dict.fromkeys(("similarity_before", "similarity_after", "converged", "seconds"), 0.0)
    found = SimpleNamespace(matrix=shift, warning=None, **facts)
    monkeypatch.setattr("common.data.scan_pair.align", lambda *_, **__: found)
    plain = pair(scans, **grid)
    assert plain["moving"].shape == plain["fixed"].shape == (1, 24, 20, 18)
    # The fixed scan has no label map yet.
    assert torch.equal(pair(scans, **grid, masked=True)["moving"], plain["moving"])
    fixed = blob(RAS, (20, 22, 18), (20, 20, 18))
    scans["fixed_label"] = save(scans["fixed"].with_name("fl.nii.gz"), (fixed > 500).astype(np.uint8), RAS)
    item = pair(scans, **grid, masked=True)
    for side in ("moving", "fixed"):
        seen = item[side] != 0
        assert torch.equal(item[side][seen], plain[side][seen]) and 0 < seen.float().mean() < 1
        # By the nearest voxel, which lies up to half a voxel away from the edge at 500.
        assert bool((plain[side][seen] > 350).all()) and bool((plain[side][~seen] < 650).all())
        assert torch.equal(item[f"{side}_scan"], plain[f"{side}_scan"])


def test_images_of_two_dimensions_have_masks_and_a_size_of_their_own(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((12, 10)).astype(np.float32)
    mask = np.zeros((12, 10), np.uint8)
    mask[3:9, 2:7] = 1
    files = {side: save(tmp_path / f"{side}.nii.gz", image, np.eye(4)) for side in ("moving", "fixed")}
    files |= {f"{side}_label": save(tmp_path / f"{side}_l.nii.gz", mask, np.eye(4)) for side in ("moving", "fixed")}
    item = pair(files, spatial_size=(8, 6, 4), masked=True)
    for side in ("moving", "fixed"):
        # Weights of interpolation are rounded, at whole voxels as well.
        np.testing.assert_allclose(item[side][0].numpy(), (image * mask)[2:10, 2:8], rtol=0, atol=1e-6)


def test_axes_go_where_the_network_had_them_and_sizes_are_along_these(scans: dict[str, Path]) -> None:
    grid: dict[str, Any] = {"spacing": (2, 1, 1.5), "spatial_size": (24, 20, 18)}
    plain = pair(scans, **grid)
    turned = pair(scans, spacing=(1.5, 2, 1), spatial_size=(18, 24, 20), orientation="ILA")
    # Superior, right, anterior of the one are inferior, left, anterior of the other.
    for side in ("moving", "fixed"):
        expected = plain[side].permute(0, 3, 1, 2).flip(1, 2)
        # Places rounded to float32 by some 1e-6 voxel, on edges of hundreds a voxel: up to 7e-4 of 1000.
        torch.testing.assert_close(turned[side], expected, rtol=0, atol=1e-3)
    assert turned["spacing"].tolist() == [1.5, 2, 1]


@pytest.mark.parametrize("both", [True, False])
def test_the_affine_alignment_sees_what_the_network_does_where_both_scans_have_label_maps(
    scans: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    given: list[Tensor] = []

    def align(moving: Tensor, moving_grid: Any, fixed: Tensor, *others: Any, **names: Any) -> Alignment:
        given.extend((moving, fixed))
        return Alignment(torch.eye(4, dtype=torch.float64), 0.0, 1.0, True, 0.0)

    monkeypatch.setattr("common.data.scan_pair.align", align)
    if both:
        label = np.zeros((20, 22, 18), np.int16)
        label[5:15, 5:15, 5:15] = 3
        scans["fixed_label"] = save(tmp_path / "fl.nii.gz", label, RAS)
    item = pair(scans, affine=True, masked=True, intensity=lambda image: image.clamp(max=500) / 1000)
    for image, side in zip(given, ("moving", "fixed"), strict=True):
        scan = item[f"{side}_scan"]
        expected = scan.clamp(max=500) / 1000 * (item[f"{side}_scan_label"] != 0) if both else scan
        assert torch.equal(image, expected)


def test_scans_and_labels_are_handed_on_as_they_were(scans: dict[str, Path]) -> None:
    item = pair(scans)
    np.testing.assert_array_equal(item["moving_scan"][0].numpy(), nib.load(scans["moving"]).get_fdata())
    np.testing.assert_array_equal(item["moving_scan_label"][0].numpy(), nib.load(scans["moving_label"]).get_fdata())
    torch.testing.assert_close(item["moving_affine"], torch.from_numpy(LAS))
    assert "fixed_scan_label" not in item and item["aligned"] == {}
    torch.testing.assert_close(item["alignment"], torch.eye(4, dtype=torch.float64))


def test_the_network_sees_its_own_spacing_and_intensities(scans: dict[str, Path]) -> None:
    item = pair(scans, spacing=[1.0, 2.0, 3.0], intensity=ScaleIntensityRangePercentiles(0, 100, 0, 1, clip=True))
    assert item["fixed"].shape == (1, 40, 22, 12)
    for image in (item["fixed"], item["moving"]):
        assert float(image.min()) == pytest.approx(0, abs=1e-4) and float(image.max()) == pytest.approx(1, abs=1e-4)
    assert float(item["fixed_scan"].max()) > 900


def test_a_flipped_fixed_scan_is_seen_in_ras_order(scans: dict[str, Path]) -> None:
    turned = {"fixed": scans["moving"], "moving": scans["fixed"]}
    item = pair(turned)
    directions = item["affine"][:3, :3] / item["affine"][:3, :3].norm(dim=0)
    torch.testing.assert_close(directions, torch.eye(3, dtype=torch.float64))
    assert item["fixed"].shape[1:] == (40, 30, 36)


def test_empty_space_around_the_foreground_is_not_registered(tmp_path: Path) -> None:
    big = np.zeros((60, 60, 60), np.float32)
    big[20:35, 22:40, 25:41] = blob(np.eye(4), (15, 18, 16), (7, 9, 8))
    path = save(tmp_path / "f.nii.gz", big, np.eye(4))
    item = pair({"fixed": path, "moving": save(tmp_path / "m.nii.gz", big, np.eye(4))})
    assert max(item["fixed"].shape[1:]) < 60
    origin = item["affine"][:3, 3].round().long().tolist()
    stop = [start + size for start, size in zip(origin, item["fixed"].shape[1:], strict=True)]
    cut = big[tuple(slice(a, b) for a, b in zip(origin, stop, strict=True))]
    np.testing.assert_allclose(item["fixed"][0].numpy(), cut, atol=1e-2)
    assert cut.sum() == pytest.approx(big.sum())


def test_an_affine_alignment_is_part_of_the_pair(scans: dict[str, Path], tmp_path: Path) -> None:
    far = LAS.copy()
    far[:3, 3] += (300, -200, 100)
    apart = {**scans, "moving": save(tmp_path / "far.nii.gz", nib.load(scans["moving"]).get_fdata(), far)}
    del apart["moving_label"]
    with pytest.raises(InputError, match="do not overlap; align them with --affine true"):
        pair(apart)
    item = pair(apart, affine=True)
    assert float(item["aligned"]["similarity_after"]) > float(item["aligned"]["similarity_before"])
    # The blob's centre, carried from the fixed to the moving world.
    centre = item["alignment"] @ torch.tensor([20.0, 20.0, 18.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(centre[:3], torch.tensor([320.0, -180.0, 118.0], dtype=torch.float64), rtol=0, atol=2.0)


def test_a_loader_makes_a_batch_of_one_pair(scans: dict[str, Path]) -> None:
    request = registration_request("", **{name: str(path) for name, path in scans.items()})
    dataset = ScanPairDataset(request.subjects, Compose([LoadSubjectd()]))
    sampler = PairSampler(dataset, strategy="listed", pairs=request.pairs, drop_last=False)
    batch = next(iter(DataLoader(dataset, sampler=sampler)))
    assert batch["moving"].shape == (1, 1, 20, 22, 18) and batch["alignment"].shape == (1, 4, 4)
    assert isinstance(batch["moving"], Tensor) and batch["moving_id"] == ["m"]


def test_by_header_is_said(scans: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        pair(scans)
    assert "brought to the fixed grid by its header" in caplog.text


def test_two_voxel_sizes_leave_a_single_slice_as_thick_as_it_is(tmp_path: Path) -> None:
    values = blob(RAS, (30, 28, 1), (30, 28, 0))
    path = save(tmp_path / "slice.nii.gz", values, np.diag([2.0, 2.0, 7.0, 1.0]))
    for spacing, shape in (([1.0, 4.0], (60, 14, 1)), ([1.0, 4.0, 1.0], (60, 14, 7))):
        assert pair({"fixed": path, "moving": path}, spacing=spacing)["fixed"].shape == (1, *shape)


def test_faults_of_a_scan_are_named(scans: dict[str, Path], tmp_path: Path) -> None:
    singular = nib.Nifti1Image(np.ones((5, 5, 5), np.float32), None)
    singular.header.set_sform(np.diag([1.0, 0.0, 1.0, 1.0]), code=1)
    singular.header.set_qform(None, code=0)
    nib.save(singular, tmp_path / "singular.nii.gz")
    with pytest.raises(InputError, match="singular.nii.gz.*cannot be inverted"):
        pair({**scans, "fixed": tmp_path / "singular.nii.gz"})
    flat = save(tmp_path / "flat.nii.gz", np.random.default_rng(0).random((8, 8)).astype(np.float32), np.eye(4))
    with pytest.raises(InputError, match="f.nii.gz is 3D.*flat.nii.gz is 2D|flat.nii.gz is 2D.*f.nii.gz is 3D"):
        pair({**scans, "moving": flat})
    for spacing in (
        [1.0],
        [1.0, 1.0],
        "null",
        "1,1,1",
        2.0,
        [1.0, 0.0, 1.0],
        [1.0, float("nan"), 1.0],
        ["a", "b", "c"],
    ):
        with pytest.raises(InputError, match="three voxel sizes"):
            pair(scans, spacing=spacing)
    with pytest.raises(InputError, match="label map .*nowhere"):
        pair({**scans, "fixed_label": tmp_path / "nowhere.nii.gz"})


@pytest.mark.parametrize(("unit", "scale"), [("meter", 0.001), ("micron", 1000), ("mm", 1)])
def test_the_unit_of_a_header_changes_nothing(scans: dict[str, Path], unit: str, scale: float, tmp_path: Path) -> None:
    expected = pair(scans, spacing=(1.5, 1.5, 1.5))
    for name in ("fixed", "moving"):
        file = nib.load(scans[name])
        affine = np.vstack([scale * file.affine[:3], file.affine[3:]])
        other = nib.Nifti1Image(np.asarray(file.dataobj), affine)
        other.header.set_xyzt_units(unit)
        nib.save(other, tmp_path / f"{name}.nii")
    found = pair({name: tmp_path / f"{name}.nii" for name in ("fixed", "moving")}, spacing=(1.5, 1.5, 1.5))
    torch.testing.assert_close(found["affine"], expected["affine"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(found["moving"], expected["moving"], rtol=1e-4, atol=0.1)


def test_an_alignment_does_not_depend_on_the_size_of_the_world(scans: dict[str, Path], tmp_path: Path) -> None:
    expected = pair(scans, affine=True)["alignment"]
    small = {name: tmp_path / f"{name}.nii" for name in ("fixed", "moving")}
    for name, path in small.items():
        file = nib.load(scans[name])
        save(path, np.asarray(file.dataobj), np.vstack([file.affine[:3] / 1000, file.affine[3:]]))
    found = pair(small, affine=True)["alignment"]
    torch.testing.assert_close(found[:3, :3], expected[:3, :3], rtol=0, atol=1e-3)
    torch.testing.assert_close(1000 * found[:3, 3], expected[:3, 3], rtol=0, atol=0.05)


@pytest.mark.parametrize(("scale", "said"), [(0.05, "little of it is left"), (500.0, "check the unit of its header")])
def test_voxels_of_another_order_than_those_of_the_network_are_said(
    scans: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, scale: float, said: str
) -> None:
    other = {name: tmp_path / f"{name}.nii" for name in ("fixed", "moving")}
    for name, path in other.items():
        file = nib.load(scans[name])
        save(path, np.asarray(file.dataobj), np.diag([scale, scale, scale, 1]) @ file.affine)
    try:
        pair(other, spacing=(1.0, 1.0, 1.0))
    except InputError as error:
        assert scale > 1 and said in str(error) and "f.nii" not in str(error) and "fixed.nii" in str(error)
    else:
        assert scale < 1 and said in caplog.text and "--spacing None" in caplog.text
    caplog.clear()
    pair(other)
    assert "--spacing" not in caplog.text


def test_an_alignment_that_fails_is_warned_of_with_its_figure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    noise = {name: save(tmp_path / f"{name}.nii.gz", rng.random((16, 16, 16)), RAS) for name in ("fixed", "moving")}
    item = pair(noise, affine=True)
    assert not bool(item["aligned"]["converged"])
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "moving.nii.gz" in warning and "fixed.nii.gz" in warning and "0." in warning


def test_one_label_map_of_two_is_kept(scans: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    item = pair(scans)
    assert "moving_scan_label" in item and "fixed_scan_label" not in item
    request = registration_request("", **{name: str(path) for name, path in scans.items()})
    PairSampler(ScanPairDataset(request.subjects, LoadSubjectd()), "listed", request.pairs, drop_last=False)
    assert "Labels for" not in caplog.text

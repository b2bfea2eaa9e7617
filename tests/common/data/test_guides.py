# SPDX-License-Identifier: Apache-2.0
"""Masks, labels and landmarks of a pair come to the grid where both images are seen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from common.checks import InputError
from common.data import (
    CheckSubjectd,
    LoadLandmarksd,
    LoadSubjectd,
    ScanPairDataset,
    guides_of_loss,
    registration_request,
)
from common.spatial import sample_at

RAS = np.diag([2.0, 2.0, 2.0, 1.0])
LAS = np.array([[-1.5, 0, 0, 39], [0, 0, 1.5, -2], [0, -1.5, 0, 41], [0, 0, 0, 1]])
SHIFT = (4.0, -2.0, 2.0)
"""Fixed world to moving world."""
WORLD = np.array([[10.0, 12, 14], [22, 12, 14], [10, 26, 14], [12, 14, 24], [20, 22, 20]])
"""Landmarks in the fixed world."""
SIZE = {"fixed": (20, 22, 18), "moving": (28, 30, 30)}
AFFINE = {"fixed": RAS, "moving": LAS}
MOVED = {"fixed": np.zeros(3), "moving": np.array(SHIFT)}


def world(side: str) -> np.ndarray:
    """Of the voxels of a scan, as the fixed world has them."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in SIZE[side]], indexing="ij"), axis=-1)
    places: np.ndarray = voxels @ AFFINE[side][:3, :3].T + AFFINE[side][:3, 3] - MOVED[side]
    return places


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two scans of one object, of which the moving one is shifted, with all that guides them."""
    found = {}
    for side, affine in AFFINE.items():
        x, y, z = np.moveaxis(world(side), -1, 0)
        image = np.exp(-((x - 18) ** 2 + (y - 20) ** 2 + (z - 16) ** 2) / 100).astype(np.float32)
        label = np.where(x < 18, 7, 600).astype(np.int32) * (image > 0.3)
        label[0, 0, 0] = 5 if side == "fixed" else 9
        found[side] = save(tmp_path / f"{side}.nii.gz", image, affine)
        found[f"{side}_label"] = save(tmp_path / f"{side}_l.nii.gz", label, affine)
        found[f"{side}_mask"] = save(tmp_path / f"{side}_m.nii.gz", (3.0 * (y > 16)).astype(np.float32), affine)
        points = (WORLD + MOVED[side] - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
        np.savetxt(tmp_path / f"{side}.csv", points, delimiter=",")
        found[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")
    return found


@pytest.fixture(autouse=True)
def aligned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What an alignment finds does not matter here: it is the shift. What it was given, moving and fixed."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, 3] = torch.tensor(SHIFT)
    facts = dict.fromkeys(("similarity_before", "similarity_after", "converged", "seconds"), 0.0)
    given: list[Tensor] = []

    def align(moving: Tensor, _: Any, fixed: Tensor, *others: Any, **names: Any) -> SimpleNamespace:
        given.extend((moving, fixed))
        return SimpleNamespace(matrix=matrix, warning=None, **facts)

    monkeypatch.setattr("common.data.scan_pair.align", align)
    return given


def pair(files: dict[str, str], *guides: str, spacing: Any = (2, 2, 2), affine: bool = True) -> dict[str, Any]:
    request = registration_request("", **files, guides=guides or ("mask",))
    keys = ["image", "label", "mask"]
    steps = Compose([LoadSubjectd(keys), CheckSubjectd(keys), LoadLandmarksd()])
    dataset = ScanPairDataset(request.subjects, steps, spacing=spacing, affine=affine, guides=guides)
    return dict(dataset[request.pairs[0]])


def test_masks_and_labels_lie_where_their_images_are_seen(files: dict[str, str]) -> None:
    item = pair(files, "mask", "label", spacing=(2, 3, 2))
    voxels = torch.stack(torch.meshgrid(*[torch.arange(n) for n in item["fixed"].shape[1:]], indexing="ij"), -1)
    x, y, _ = (voxels.double() @ item["affine"][:3, :3].T + item["affine"][:3, 3]).unbind(-1)
    object_ = item["fixed"][0] > 0.4
    for side in ("moving", "fixed"):
        mask, label = item[f"{side}_mask"], item[f"{side}_label"]
        assert mask.shape == label.shape == item[side].shape and mask.dtype == torch.float32
        # By the nearest voxel, which lies up to half a voxel away.
        seen = mask[0] == 1
        assert (
            bool((y[seen] > 14.5).all())
            and bool((y[~seen & object_] < 17.5).all())
            and mask.unique().tolist() == [0, 1]
        )
        # Labels of one map alone are background, those of both are numbered.
        assert label.dtype == torch.int32 and label.unique().tolist() == [0, 1, 2]
        assert bool((label[0][object_ & (x < 16.5)] == 1).all()) and bool((label[0][object_ & (x > 19.5)] == 2).all())
    torch.testing.assert_close(item["spacing"], torch.tensor([2.0, 3.0, 2.0]))


def test_landmarks_of_both_scans_meet_where_the_images_do(files: dict[str, str]) -> None:
    item = pair(files, "mask", "landmarks", spacing=(2, 3, 1.5))
    fixed, moving = item["fixed_landmarks"], item["moving_landmarks"]
    assert fixed.dtype == torch.float32
    # The shift is all that there is.
    torch.testing.assert_close(moving, fixed, rtol=0, atol=1e-4)
    places = fixed.double() @ item["affine"][:3, :3].T + item["affine"][:3, 3]
    # Voxels are float32.
    np.testing.assert_allclose(places.numpy(), WORLD, atol=1e-4)
    for side in ("moving", "fixed"):
        # The image has the same value there as in the file, between voxels of 2 mm.
        values: Tensor = sample_at(item[side][None], item[f"{side}_landmarks"][None])
        own = sample_at(item[f"{side}_scan"][None], item[f"{side}_scan_landmarks"][None].float())
        torch.testing.assert_close(values, own, rtol=0, atol=0.05)


@pytest.mark.parametrize("sides", [("fixed",), ("moving", "fixed")])
def test_the_affine_alignment_sees_what_masks_leave(
    files: dict[str, str], aligned: list[Tensor], sides: tuple[str, ...]
) -> None:
    left_out = [f"{side}_mask" for side in ("moving", "fixed") if side not in sides]
    item = pair({name: file for name, file in files.items() if name not in left_out}, "mask")
    for side, seen in zip(("moving", "fixed"), aligned, strict=True):
        places = torch.from_numpy(world(side)[..., 1] > 16)
        scan = item[f"{side}_scan"]
        # The background of an image without zeros is its smallest value: 0 would be tissue in a CT.
        assert torch.equal(seen, torch.where(places, scan, scan.min()) if side in sides else scan)


def test_what_is_not_asked_for_stays_on_the_own_grids(files: dict[str, str]) -> None:
    item = pair({name: file for name, file in files.items() if not name.endswith("mask")})
    assert not [name for name in item if name.endswith(("_mask", "_landmarks", "_label")) and "scan" not in name]
    assert item["fixed_scan_landmarks"].shape == (5, 3) and item["moving_scan_label"].unique().tolist() == [
        0,
        7,
        9,
        600,
    ]


def test_one_mask_is_enough_and_images_may_be_flat(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((12, 10)).astype(np.float32)
    mask = (image > 0.5).astype(np.uint8)
    files = {side: save(tmp_path / f"{side}.nii.gz", image, np.eye(4)) for side in ("moving", "fixed")}
    files["fixed_mask"] = save(tmp_path / "m.nii.gz", mask, np.eye(4))
    for side in ("moving", "fixed"):
        np.savetxt(tmp_path / f"{side}.csv", [[1, 2], [3, 4], [5, 6], [7, 8]], delimiter=",")
        files[f"{side}_landmarks"] = str(tmp_path / f"{side}.csv")
    item = pair(files, "mask", "landmarks", spacing=None, affine=False)
    np.testing.assert_array_equal(item["fixed_mask"][0].numpy(), mask)
    assert "moving_mask" not in item and item["spacing"].tolist() == [1, 1]
    assert item["fixed_landmarks"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


def test_an_optimisation_is_guided_by_what_its_loss_looks_at() -> None:
    names = ["moving", "fixed", "ddf", "fixed_mask", "moving_label", "fixed_label", "fixed_landmarks"]
    assert guides_of_loss(names, 10) == guides_of_loss(names, [0, 5]) == ("mask", "label", "landmarks")
    assert guides_of_loss(["warped", "moving_mask"], 0) == () == guides_of_loss(["map", "warped_label"], 3)
    with pytest.raises(InputError, match="--io_steps is 0"):
        guides_of_loss(names, 0)


def spoil(path: str, change: Any) -> None:
    file: Any = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(file.dataobj)), file.affine), path)


def test_masks_that_say_nothing_or_lie_elsewhere_are_refused(files: dict[str, str]) -> None:
    spoil(files["fixed_mask"], np.zeros_like)
    with pytest.raises(InputError, match=r"mask .*fixed_m.nii.gz is 0 everywhere"):
        pair(files, "mask")
    spoil(files["fixed_mask"], lambda mask: np.ones_like(mask[:-1]))
    with pytest.raises(InputError, match=r"The mask .*fixed_m.nii.gz has shape .*both must lie on one grid"):
        pair(files, "mask")


def test_a_mask_beyond_the_part_that_is_registered_is_refused(files: dict[str, str]) -> None:
    def corner(mask: np.ndarray) -> np.ndarray:
        mask[:] = 0
        mask[-1, -1, -1] = 1
        return mask

    spoil(files["moving_mask"], corner)
    with pytest.raises(InputError, match="Nothing of the mask of the moving scan lies where the fixed scan is"):
        pair(files, "mask")


def test_labels_that_no_other_map_has_cannot_guide(files: dict[str, str]) -> None:
    spoil(files["moving_label"], lambda label: (label + 1000 * (label > 0)).astype(np.int32))
    with pytest.raises(InputError, match="no label in common"):
        pair({name: file for name, file in files.items() if not name.endswith("mask")}, "label")


@pytest.mark.parametrize(("counts", "message"), [((3, 3), "holds 3 landmark"), ((5, 4), "holds 5 landmarks and .* 4")])
def test_landmarks_have_to_be_four_and_correspond(files: dict[str, str], counts: tuple[int, int], message: str) -> None:
    for side, count in zip(("moving", "fixed"), counts, strict=True):
        path = Path(files[f"{side}_landmarks"])
        path.write_text("\n".join(path.read_text().splitlines()[:count]))
    with pytest.raises(InputError, match=message):
        pair(files, "mask", "landmarks")


def test_a_constant_scan_is_refused(files: dict[str, str]) -> None:
    spoil(files["moving"], np.ones_like)
    with pytest.raises(InputError, match=r"moving.nii.gz is constant"):
        pair(files, "mask")

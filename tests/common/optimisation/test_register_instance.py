# SPDX-License-Identifier: Apache-2.0
"""Registration as a dictionary transform: what is found, where things lie, and the way back by MONAI's Invertd."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.networks.blocks import Warp
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    Spacingd,
)
from torch import Tensor

from common.checks import InputError
from common.metrics import dice_l2r, mean_over_labels
from common.optimisation import RegisterInstanced
from common.spatial import Grid, displacement_to_moving, warp_labels
from common.spatial.plane import laid, lifted, lifted_field

SIZES = {2: (32, 28), 3: (20, 24, 22)}
BOTH = pytest.mark.parametrize("dims", [2, 3])
CENTRES = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
"""Of the blobs of the scene, in shares of its box."""
TILTED = torch.tensor([[0.0, -1.25, 0.1, 32.0], [-0.9, 0, 0, 28], [0, 0.1, 1.4, -2], [0, 0, 0, 1]], dtype=torch.float64)
"""Another grid about the same box: axes exchanged and flipped, voxels of other sizes."""
LABELS = [1, 2, 3]


def bend(points: Tensor, dims: int) -> Tensor:
    """A displacement in millimetres of points (N, 3) of the fixed world, up to 3, 0 at the border of the box."""
    box = torch.tensor([n - 1.0 for n in SIZES[dims]], dtype=torch.float64)
    waves = torch.sin(torch.pi * points[:, :dims] / box).prod(1, keepdim=True)
    return torch.nn.functional.pad(waves * torch.tensor([3.0, -2, 1.5])[:dims], (0, 3 - dims))


def scene(points: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Values and labels of the moving world at points (N, 3) in millimetres; what they say does not depend on grids."""
    box = torch.tensor([n - 1.0 for n in SIZES[dims]], dtype=torch.float64)
    distances = torch.cdist(points[:, :dims], CENTRES[: 20 * dims, :dims] * box)
    values = (-(distances**2) / 8).exp() * torch.linspace(0.3, 1, 20 * dims, dtype=torch.float64)
    nearest = torch.cdist(points[:, :dims], CENTRES[:3, :dims] * box * 0.4 + box * 0.3)
    labels = torch.where(nearest.min(1).values < 6, nearest.argmin(1) + 1, 0)
    return values.sum(1), labels


def seen(shape: tuple[int, ...], affine: Tensor, dims: int, fixed: bool) -> tuple[MetaTensor, MetaTensor]:
    """Image and labels (1, *shape) of the scene on a grid; the fixed one is bent."""
    grid = Grid.of(shape, affine)
    voxels = torch.cartesian_prod(*[torch.arange(float(n), dtype=torch.float64) for n in grid.shape])
    points = voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    values, labels = scene(points + bend(points, dims) if fixed else points, dims)
    image = MetaTensor(values.view(1, *shape).float(), affine=affine)
    return image, MetaTensor(labels.view(1, *shape).to(torch.uint8), affine=affine)


def pair(dims: int, moving: tuple[tuple[int, ...], Tensor] | None = None) -> dict[str, Any]:
    whole = torch.eye(4, dtype=torch.float64)
    (fixed, fixed_label) = seen(SIZES[dims], whole, dims, fixed=True)
    (image, label) = seen(*(moving or (SIZES[dims], whole)), dims, fixed=False)
    return {"moving": image, "moving_label": label, "fixed": fixed, "fixed_label": fixed_label}


def tilted(dims: int) -> tuple[tuple[int, ...], Tensor]:
    return ((33, 27, 18)[:dims], TILTED)


def registered(**options: Any) -> RegisterInstanced:
    # On grids so small the known field is steeper than those between brains, whose smoothness is the default.
    defaults = {"affine": False, "steps": 15, "smoothness": 0.05}
    return RegisterInstanced(("moving", "moving_label"), "fixed", **{**defaults, **options})


def best_dice(data: dict[str, Any], dims: int) -> float:
    """Of the labels of small things that the known field itself carries by the nearest voxel."""
    label, place = data["moving_label"], lifted_field(known_field(dims), dims)[None]
    own, fixed = (Grid.of(entry.shape[1:], entry.affine) for entry in (label, data["fixed"]))
    place = displacement_to_moving(own, fixed, place)
    return dice(laid(warp_labels(lifted(label.as_tensor(), dims)[None], place)[0], dims), data["fixed_label"])


def dice(first: Tensor, second: Tensor) -> float:
    carried, expected = (torch.as_tensor(labels)[None].to(torch.int32) for labels in (first, second))
    return float(mean_over_labels(dice_l2r(carried, expected, LABELS)))


@pytest.mark.parametrize(("dims", "affine"), [(2, False), (3, False), (3, True)])
def test_an_image_is_registered_to_itself_by_nothing(dims: int, affine: bool) -> None:
    data = pair(dims)
    data["fixed"] = data["moving"]
    found = registered(affine=affine, steps=5)(data)
    assert float(found["ddf"].abs().max()) < 0.1
    # What is left is the interpolation of shifts that small.
    torch.testing.assert_close(found["moving"].as_tensor(), data["moving"].as_tensor(), rtol=0, atol=0.05)


def known_field(dims: int) -> Tensor:
    """(d, *spatial) in voxels of the fixed grid, which are millimetres."""
    axes = [torch.arange(float(n), dtype=torch.float64) for n in (*SIZES[dims], 1)[:3]]
    return bend(torch.cartesian_prod(*axes), dims)[:, :dims].T.view(dims, *SIZES[dims]).float()


def off(field: Tensor, expected: Tensor, known: Tensor | None = None) -> float:
    """Mean length of what a field (d, *spatial) is off, in that of the known one, away from the border."""
    core = (slice(None), *[slice(4, -4)] * expected.shape[0])
    wrong, whole = (part[core].norm(dim=0).mean() for part in (field - expected, expected if known is None else known))
    return float(wrong / whole)


@BOTH
def test_a_known_field_is_found_on_one_grid(dims: int) -> None:
    data, known = pair(dims), known_field(dims)
    found = registered()(data)
    assert off(found["ddf"].as_tensor(), known) < 0.2
    before, after = (dice(labels["moving_label"], data["fixed_label"]) for labels in (data, found))
    assert after > best_dice(data, dims) - 0.03 and after > before + 0.1
    told = found["ddf"].meta["optimisation"]
    assert told["after"] < 0.5 * told["before"] and told["steps"] == 45
    # The convention is that of MONAI's Warp.
    warped = Warp(padding_mode="border")(data["moving"][None], found["ddf"][None])[0]
    core = (0, *[slice(4, -4)] * dims)
    torch.testing.assert_close(found["moving"].as_tensor()[core], warped.as_tensor()[core], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dims", "affine"), [(2, False), (2, True), (3, False)])
def test_images_of_two_grids_meet_in_the_world(dims: int, affine: bool) -> None:
    data, expected = pair(dims, tilted(dims)), known_field(dims)
    best = best_dice(data, dims)
    if affine:
        # The moving scanner's world begins elsewhere: the alignment has to find it, and the field has it in it.
        shift = torch.tensor([3.0, -4.0, 2.0])[:dims]
        expected = expected + shift.view(-1, *[1] * dims)
        moved = TILTED.clone()
        moved[:dims, 3] += shift
        data["moving"].affine = data["moving_label"].affine = moved
    step = registered(affine=affine)
    found = step(data)
    for key in ("moving", "moving_label"):
        assert found[key].shape == found["fixed"].shape and torch.equal(found[key].affine, found["fixed"].affine)
    assert dice(found["moving_label"], data["fixed_label"]) > best - 0.03
    assert off(found["ddf"].as_tensor(), expected, known_field(dims)) < (0.4 if affine else 0.25)
    assert torch.equal(found["ddf"].affine, found["fixed"].affine) and found["ddf"].shape == (dims, *SIZES[dims])
    assert torch.equal(found["ddf"].meta["alignment"], torch.eye(4)) == (not affine)
    again = step.inverse(found)
    assert all(torch.equal(again[key].affine, data[key].affine) for key in ("moving", "moving_label"))
    assert dice(again["moving_label"], data["moving_label"]) > 0.95


@BOTH
def test_what_is_predicted_on_the_fixed_grid_goes_back(dims: int) -> None:
    data = pair(dims, tilted(dims))
    step = registered()
    chain = Compose([step])
    found = chain(data)
    found["pred"] = MetaTensor(torch.cat([data["fixed_label"], found["moving_label"]]))
    back = Invertd("pred", chain, "moving")(found)["pred"]
    assert back.shape == (2, *data["moving"].shape[1:]) and torch.equal(back.affine, data["moving"].affine)
    assert back.dtype == torch.uint8 and back.applied_operations == [] and found["pred"].shape[1:] == SIZES[dims]
    assert dice(back[:1], data["moving_label"]) > 0.9
    # There and back again.
    assert dice(back[1:], data["moving_label"]) > 0.95
    # Linearly, where nothing has to be nearest.
    image = Invertd("moving", chain, nearest_interp=False)(found)["moving"]
    core = (0, *[slice(5, -5)] * dims)
    assert float((image - data["moving"])[core].abs().mean()) < 0.06 * float(data["moving"][core].max())
    whole = step.inverse(found)["moving"]
    assert torch.equal(whole, image)


def saved(folder: Path, dims: int) -> dict[str, str]:
    """Images and moving labels as files, the moving ones on the tilted grid."""
    data, paths = pair(dims, tilted(dims)), {}
    # Spacingd of MONAI takes "moving_label" for metadata of "moving".
    for name, key in (("moving", "moving"), ("label", "moving_label"), ("fixed", "fixed")):
        paths[name] = str(folder / f"{name}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(data[key][0].numpy(), data[key].affine.numpy()), paths[name])
    return paths


@BOTH
def test_it_stands_among_the_steps_of_monai(tmp_path: Path, dims: int) -> None:
    keys, both = ("moving", "label", "fixed"), ("moving", "fixed")
    step = RegisterInstanced(("moving", "label"), "fixed", "field", affine=False, steps=15)
    before: list[Any] = [LoadImaged(keys), EnsureChannelFirstd(keys)]
    spacing = (1.2, 1.0, 1.1)[:dims]
    before += [Orientationd(keys, "RAS"[:dims], labels=None), Spacingd(both, spacing), step]
    after = [Spacingd(("moving", "label", "fixed"), tuple(1.3 for _ in spacing), mode="nearest")]
    chain, paths = Compose(before + after), saved(tmp_path, dims)
    found = chain(paths)
    assert found["moving"].shape == found["fixed"].shape and torch.equal(found["moving"].affine, found["fixed"].affine)
    assert found["field"].shape[1:] != found["fixed"].shape[1:]
    found["pred"] = MetaTensor(found["label"])
    back = Invertd("pred", chain, "moving")(found)["pred"]
    file = nibabel.load(paths["label"])
    assert back.shape[1:] == file.shape
    # Headers hold float32.
    np.testing.assert_allclose(back.affine, file.affine, rtol=0, atol=1e-6)
    # Four times by the nearest voxel, and voxels of another size between.
    assert dice(back, torch.from_numpy(np.asarray(file.dataobj))[None]) > 0.8
    found["pred"] = back
    options: dict[str, Any] = {"output_dir": tmp_path, "separate_folder": False, "print_log": False}
    for key, name in (("pred", "back"), ("label", "carried")):
        SaveImaged(key, output_postfix=name, resample=key == "label", **options)(found)
    for name, like in (("moving_back", "moving"), ("label_carried", "fixed")):
        written, expected = nibabel.load(tmp_path / f"{name}.nii.gz"), nibabel.load(paths[like])
        assert written.shape == expected.shape
        # Headers hold float32.
        np.testing.assert_allclose(written.affine, expected.affine, rtol=0, atol=1e-5)


def test_batches_of_workers_are_those_of_one_process(tmp_path: Path) -> None:
    chain = Compose([registered(steps=3)])
    data = [pair(2), pair(2, tilted(2))]
    # Batches hold images of one size.
    data = [{key: entry for key, entry in found.items() if key != "fixed_label"} for found in data]
    (batch,) = DataLoader(Dataset(data, chain), batch_size=2, num_workers=1)
    assert batch["ddf"].shape == (2, 2, *SIZES[2]) and batch["ddf"].meta["alignment"].shape == (2, 4, 4)
    for given, item in zip(data, decollate_batch(batch), strict=True):
        alone = chain(given)
        assert all(torch.equal(item[key], alone[key]) for key in alone)
        back = Invertd("moving_label", chain)(item)["moving_label"]
        assert back.shape == given["moving_label"].shape
        assert torch.equal(back, Invertd("moving_label", chain)(alone)["moving_label"])


def test_it_can_be_pickled_and_leaves_what_it_is_given() -> None:
    data = pair(2)
    kept = {key: entry.clone() for key, entry in data.items()}
    step = registered(steps=3, similarity="mse")
    found = step(data)
    again = pickle.loads(pickle.dumps(step))(data)
    assert torch.equal(found["ddf"], again["ddf"]) and float(found["ddf"].abs().max()) > 0.1
    assert all(torch.equal(data[key], kept[key]) and data[key].applied_operations == [] for key in kept)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float64, torch.float16, torch.uint8])
def test_what_is_carried_by_the_nearest_voxel_keeps_its_type_and_values(dtype: torch.dtype) -> None:
    data = pair(2)
    large = 2**40 + 1 if dtype in (torch.int64, torch.float64) else True
    data["moving_label"] = torch.stack([data["moving_label"][0] == 1, data["moving_label"][0] == 2]).to(dtype) * large
    found = registered(steps=2)(data)["moving_label"]
    assert found.dtype == dtype and found.shape == (2, *SIZES[2])
    assert found.unique().tolist() == [0, large]


def test_a_mask_keeps_out_what_only_one_image_has() -> None:
    data, known = pair(2), known_field(2)
    lesion = torch.zeros(1, *SIZES[2], dtype=torch.bool)
    lesion[0, 8:18, 8:18] = True
    noise = 2 * torch.rand(lesion.shape, generator=torch.Generator().manual_seed(0))
    data["fixed"] = MetaTensor(torch.where(lesion, noise, data["fixed"].as_tensor()))
    data["whole"] = ~lesion
    around = torch.zeros_like(lesion[0])
    around[4:22, 4:22] = True

    def error(**masks: str) -> float:
        return float((registered(**masks)(data)["ddf"].as_tensor() - known).norm(dim=0)[around & ~lesion[0]].mean())

    pulled = error()
    assert error(fixed_mask_key="whole") < 0.5 * pulled
    # And where all of the moving image counts, too.
    data["moving_mask"] = torch.ones(1, *SIZES[2])
    assert error(fixed_mask_key="whole", moving_mask_key="moving_mask") < 0.5 * pulled


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"fixed": None}, {}, "no 'fixed' to register among 'moving'"),
        ({"moving": torch.zeros(1, 8, 8)}, {}, "moving is constant"),
        ({"fixed": torch.full((1, 8, 8), torch.nan)}, {}, "fixed has NaN"),
        ({"moving": torch.rand(3, 8, 8)}, {}, r"moving has the shape \(3, 8, 8\)"),
        ({"moving": torch.rand(1, 8, 8, 8)}, {}, "moving is 3D and fixed is 2D"),
        ({"mask": torch.ones(1, 9, 9)}, {"fixed_mask_key": "mask"}, r"mask mask has shape \(9, 9\)"),
        ({"mask": torch.zeros(1, *SIZES[2])}, {"moving_mask_key": "mask"}, "mask is 0 everywhere"),
        ({}, {"moving_mask_key": "mask"}, "no 'mask', which should be the mask of the moving image"),
        ({"moving": MetaTensor(torch.rand(1, 8, 8), affine=torch.zeros(4, 4))}, {}, "moving: .*cannot be inverted"),
    ],
)
def test_what_cannot_be_registered_is_said(change: dict[str, Any], options: dict[str, Any], said: str) -> None:
    data = {**pair(2), **change}
    with pytest.raises(InputError, match=said):
        registered(**options)({key: entry for key, entry in data.items() if entry is not None})


def test_images_that_lie_apart_need_an_alignment() -> None:
    far = TILTED.clone()
    far[:2, 3] += 300
    data = pair(2)
    data["moving"], data["moving_label"] = (MetaTensor(entry, affine=far) for entry in (data["moving"], data["moving"]))
    with pytest.raises(InputError, match="do not overlap: align them with affine=True"):
        registered()(data)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "cubic"}, "cubic.*not among bilinear, nearest"),
        ({"similarity": "psnr"}, "psnr.*lncc"),
        ({"levels": ()}, "levels"),
        ({"steps": -1}, "-1 steps"),
        ({"field_key": "moving"}, "need keys of their own"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        registered(**options)


def test_what_lies_elsewhere_is_not_carried_back() -> None:
    step = registered(steps=0)
    found = step(pair(2))
    with pytest.raises(InputError, match=r"'moving' has the shape \(1, 28, 28\).* \(32, 28\) voxels"):
        step.inverse({**found, "moving": found["moving"][:, 2:-2]})


def test_what_goes_along_may_be_absent_if_that_is_allowed() -> None:
    data = {key: entry for key, entry in pair(2).items() if key != "moving_label"}
    with pytest.raises(KeyError, match="moving_label"):
        registered(steps=0)(data)
    found = registered(steps=0, fixed_mask_key="mask", allow_missing_keys=True)(data)
    assert "moving_label" not in found and float(found["ddf"].abs().max()) == 0


def test_the_affine_alignment_sees_background_where_a_mask_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    data, given = pair(2), {}

    def align(scans: dict[str, Tensor], *others: Any) -> tuple[Tensor, dict[str, Any]]:
        given.update(scans)
        return torch.eye(4, dtype=torch.float64), {}

    monkeypatch.setattr("common.optimisation.register_instance.align_scans", align)
    # In Hounsfield units background is not 0.
    data["moving"] = data["moving"] * 1000 - 1000
    data["mask"] = torch.zeros(1, *SIZES[2])
    data["mask"][0, 4:20, 4:20] = 3
    registered(affine=True, steps=0, moving_mask_key="mask")(data)
    inside = data["mask"][..., None] > 0
    assert torch.equal(given["moving"][inside], data["moving"].as_tensor()[..., None][inside])
    assert bool((given["moving"][~inside] == data["moving"].min()).all())
    assert torch.equal(given["fixed"][..., 0], data["fixed"].as_tensor())

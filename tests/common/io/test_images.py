# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image as Picture

from common.checks import InputError
from common.io.image_kinds import image_of
from common.io.images import Image
from common.io.nifti import read_grid, read_image, read_labels

# A voxel of 1 x 2 x 3 mm, turned by 30 degrees about the third axis and with its first axis to the left.
TURN = np.array([[-np.cos(0.5), -np.sin(0.5), 0], [-np.sin(0.5), np.cos(0.5), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * [1, 2, 3], [5, -7, 11]
VALUES = np.random.default_rng(0).integers(-9, 99, (3, 4, 5)).astype(np.int16)
needs = {
    name: pytest.mark.skipif(
        importlib.util.find_spec(name) is None,
        reason=f"{package} is missing: pip install -r requirements-baselines.txt",
    )
    for name, package in (("SimpleITK", "SimpleITK"), ("ants", "antspyx"))
}


def same(found: Any, values: np.ndarray = VALUES, affine: np.ndarray = AFFINE) -> None:
    assert isinstance(found, Image)
    np.testing.assert_array_equal(found.array, values)
    # A NIfTI header holds float32.
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)


def test_nibabel_image_is_read_as_its_file(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(VALUES, AFFINE)
    file.header.set_slope_inter(0.5, 3)
    nibabel.save(file, tmp_path / "scaled.nii.gz")
    held, path = image_of(nibabel.load(tmp_path / "scaled.nii.gz"), "moving"), str(tmp_path / "scaled.nii.gz")
    assert str(held) == path
    for one, other in zip(read_image(held), read_image(path), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype
    assert read_grid(held).same_as(read_grid(path), 0)
    assert str(image_of(nibabel.Nifti1Image(VALUES, AFFINE), "moving")) == "moving"


def test_labels_in_memory_are_whole_numbers() -> None:
    labels, affine = read_labels(Image(VALUES.astype(np.float64), AFFINE, "moving_label"))
    assert labels.dtype == torch.int16 and torch.equal(labels, torch.from_numpy(VALUES))
    np.testing.assert_array_equal(affine, AFFINE)
    with pytest.raises(InputError, match="moving_label has values that are no integers"):
        read_labels(Image(VALUES / 2 + 0.25, AFFINE, "moving_label"))


@pytest.mark.parametrize("channel", [True, False])
@pytest.mark.parametrize("space", ["RAS", "LPS"])
def test_metatensor_with_channel_or_without(channel: bool, space: str) -> None:
    values = torch.from_numpy(VALUES)
    affine = np.diag([-1.0, -1, 1, 1]) @ AFFINE if space == "LPS" else AFFINE
    tensor = MetaTensor(values[None] if channel else values, affine=torch.from_numpy(affine), meta={"space": space})
    same(image_of(tensor, "moving"))
    same(image_of(Image(VALUES, AFFINE).to_metatensor(), "moving"))


def test_metatensor_of_two_dimensions() -> None:
    plane = np.diag([2.0, 3.0, 1.0])
    found = image_of(MetaTensor(torch.zeros(1, 6, 7), affine=torch.from_numpy(plane)), "moving")
    assert isinstance(found, Image) and found.array.shape == (6, 7) and found.grid.spacing == (2, 3, 1)


class Stand:
    """What is asked of an image of ITK's world: turned by 30 degrees in LPS, its first axis to the left."""

    direction = (np.diag([-1.0, -1, 1]) @ TURN).copy()
    spacing, origin, components = (1.0, 2.0, 3.0), (-5.0, 7.0, 11.0), 1

    def numpy(self) -> np.ndarray:
        return VALUES

    def __getattr__(self, name: str) -> Any:
        kept = {
            "GetDirection": tuple(self.direction.flatten()),
            "GetSpacing": self.spacing,
            "GetOrigin": self.origin,
            "GetNumberOfComponentsPerPixel": self.components,
        }
        return lambda: kept[name]


@pytest.mark.parametrize(("module", "kind"), [("SimpleITK.SimpleITK", "Image"), ("ants.core.ants_image", "ANTsImage")])
def test_images_of_itks_world_are_known_by_name(module: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.SimpleNamespace(GetArrayFromImage=lambda image: image.numpy().T)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], package)
    of_kind: Any = type(kind, (Stand,), {"__module__": module})
    same(image_of(of_kind(), "moving"))
    of_kind.components = 3
    with pytest.raises(InputError, match="The moving image has 3 numbers per voxel"):
        image_of(of_kind(), "moving")


@needs["SimpleITK"]
def test_simpleitk_and_back() -> None:
    import SimpleITK

    image = Image(VALUES, AFFINE).to_sitk()
    # Index (2, 1, 3) lies where both say: LPS there, RAS here.
    place = np.array(image.TransformIndexToPhysicalPoint((2, 1, 3))) * [-1, -1, 1]
    np.testing.assert_allclose(place, (AFFINE @ [2, 1, 3, 1])[:3], atol=1e-9)
    assert image[2, 1, 3] == VALUES[2, 1, 3]
    same(image_of(image, "moving"))
    flat = image_of(SimpleITK.Image([6, 7], SimpleITK.sitkUInt8), "moving")
    same(flat, np.zeros((6, 7)), np.diag([-1.0, -1, 1, 1]))
    assert Image(np.zeros((6, 7)), np.eye(4)).to_sitk().GetSize() == (6, 7)


@needs["ants"]
def test_ants_and_back() -> None:
    image = Image(VALUES.astype(np.float32), AFFINE).to_ants()
    same(image_of(image, "moving"))
    assert Image(np.zeros((6, 7), bool), np.eye(4)).to_ants().shape == (6, 7)


def test_another_release_has_its_own_class() -> None:
    other = type("Image", (), {"array": VALUES, "affine": AFFINE, "name": "theirs", "to_sitk": None})()
    same(image_of(other, "moving"))
    assert str(image_of(other, "moving")) == "theirs"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (VALUES, "The moving image is a ndarray without a place in the world"),
        (torch.zeros(3, 4, 5), "The moving image is a Tensor without"),
        (MetaTensor(torch.zeros(2, 3, 4, 5)), "has 2 channels"),
        (nibabel.Nifti1Image(np.zeros((2, 3, 4, 5)), np.eye(4)), r"moving has shape \(2, 3, 4, 5\)"),
        (MetaTensor(torch.zeros(3, 4, 5, dtype=torch.complex64)), "one real number per voxel"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        image_of(source, "moving")


def test_saved_images_are_read_back(tmp_path: Path) -> None:
    image = Image(VALUES, AFFINE)
    values, affine = read_image(image.save(tmp_path / "image.nii.gz"))
    np.testing.assert_array_equal(values, VALUES)
    # ITK keeps directions of length 1, so that affines are put together anew.
    np.testing.assert_allclose(affine, AFFINE, atol=1e-5)
    same(image_of(image.to_nibabel(), "moving"))
    with pytest.raises(InputError, match="exists"):
        image.save(tmp_path / "image.nii.gz")
    with pytest.raises(InputError, match="nii"):
        image.save(tmp_path / "image.mha")
    Image(np.arange(6.0).reshape(2, 3), np.eye(4)).save(tmp_path / "flat.png")
    np.testing.assert_array_equal(np.asarray(Picture.open(tmp_path / "flat.png")), np.arange(6).reshape(2, 3).T)
    for affine_of_no_image in (np.eye(3), np.zeros((4, 4))):
        with pytest.raises(InputError):
            assert Image(VALUES, affine_of_no_image).grid

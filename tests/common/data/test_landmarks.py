# SPDX-License-Identifier: Apache-2.0
"""Landmarks of subjects: where they come to lie, and what is no landmark of a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose

from common.checks import InputError
from common.data import LoadLandmarksd, LoadSubjectd, PairDataset, WorkingGridd
from common.metrics import tre_l2r

# 2 x 2 x 4 mm, LAS, far from the origin.
AFFINE = np.array([[-2.0, 0, 0, 70], [0, 2, 0, -190], [0, 0, 4, 150], [0, 0, 0, 1]])
SIZE = (20, 22, 12)
VOXELS = np.array([[5.0, 7, 3], [14, 9, 8], [10, 15, 6]])
RAS = VOXELS @ AFFINE[:3, :3].T + AFFINE[:3, 3]
REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "lung" / "l2r_lungct"


def subject(
    folder: Path, points: np.ndarray = VOXELS, name: str = "a", header: str = "", **more: str
) -> dict[str, str]:
    """A scan that is bright at the voxels above, and a table of points."""
    image = np.random.default_rng(0).random(SIZE, np.float32) / 10
    image[tuple(VOXELS.astype(int).T)] = 1
    nibabel.save(nibabel.Nifti1Image(image, AFFINE), folder / f"{name}.nii.gz")
    np.savetxt(folder / f"{name}.csv", points, delimiter=",", fmt="%.6f", header=header, comments="")
    return {"id": name, "image": str(folder / f"{name}.nii.gz"), "landmarks": str(folder / f"{name}.csv"), **more}


def bright(image: torch.Tensor) -> list[list[int]]:
    """The three places that stand out."""
    places: list[list[int]] = (image > 0.5 * image.max()).nonzero().tolist()
    return places


def load(one: dict[str, str], *between: Any) -> dict[Any, Any]:
    loaded: dict[Any, Any] = Compose([LoadSubjectd("image"), *between, LoadLandmarksd()])(one)
    return loaded


@pytest.mark.parametrize(
    ("points", "header", "more"),
    [
        (VOXELS, "", {}),
        (VOXELS + 1, "", {"landmark_coordinates": "voxel_from_1"}),
        (RAS, "r,a,s", {}),
        (RAS * (-1, -1, 1), "l,p,s", {}),
        (RAS * (-1, -1, 1), "", {"landmark_coordinates": "lps"}),
    ],
)
def test_points_are_voxels_of_the_image_whatever_they_are_given_in(
    tmp_path: Path, points: np.ndarray, header: str, more: dict[str, str]
) -> None:
    found = load(subject(tmp_path, points, header=header, **more))["landmarks"]
    # The table has six digits, the header's affine is of single precision.
    np.testing.assert_allclose(found.numpy(), VOXELS, atol=1e-5)


def test_points_go_with_the_image_to_another_grid(tmp_path: Path) -> None:
    # Without new voxels, but in another order, enlarged and cropped.
    found = load(subject(tmp_path), WorkingGridd("image", None, (30, 18, 14)))
    image, points = found["image"], found["landmarks"]
    assert image.shape == (1, 30, 18, 14) and points.dtype == torch.float64
    torch.testing.assert_close(points, points.round())
    assert bright(image[0]) == sorted(points.long().tolist())
    # The world does not move, whatever the voxels are.
    found = load(subject(tmp_path), WorkingGridd("image", (3, 3, 3), (20, 20, 20)))
    affine = found["image"].affine
    # Millimetres up to 190 by a header of single precision, to the grid and back.
    np.testing.assert_allclose(found["landmarks"] @ affine[:3, :3].T + affine[:3, 3], RAS, atol=1e-4)


@pytest.mark.parametrize(
    ("points", "header", "message"),
    [
        (VOXELS[:, :2], "", r"a\.csv, line 1: 2 values, but a point has 3 coordinates"),
        (
            RAS,
            "",
            r"a\.csv: 3 of 3 points lie outside .* as voxels, but 3 of 3 inside as RAS .* name the columns r, a, s",
        ),
        (
            RAS,
            "l,p,s",
            r"a\.csv: .* outside .* as LPS .* inside as RAS .*: correct what the file says of its coordinates",
        ),
        (VOXELS + 1000, "", r"a\.csv: 3 of 3 points lie outside .* give the landmarks of this image"),
    ],
)
def test_what_is_no_landmark_of_the_scan_is_refused_in_a_sentence(
    tmp_path: Path, points: np.ndarray, header: str, message: str
) -> None:
    data = [subject(tmp_path, points, header=header), subject(tmp_path, name="b")]
    with pytest.raises(InputError, match=message) as error:
        PairDataset(data, Compose([LoadSubjectd("image"), LoadLandmarksd()]), progress=False)
    assert "\n" not in str(error.value)


def test_points_that_are_cropped_away_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(subject(tmp_path), WorkingGridd("image", None, (20, 22, 12)))
    assert not caplog.records
    load(subject(tmp_path), WorkingGridd("image", None, (20, 22, 5)))
    assert "a.csv: 1 of 3 landmarks lie outside of the part of the image that is registered" in caplog.text


def test_points_of_an_image_of_two_dimensions_have_two_coordinates(tmp_path: Path) -> None:
    one = subject(tmp_path, VOXELS[:, :2])
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).random(SIZE[:2], np.float32), AFFINE), one["image"])
    np.testing.assert_array_equal(LoadLandmarksd()(LoadSubjectd("image")(one))["landmarks"].numpy(), VOXELS[:, :2])


# Pairs


def dataset(*data: dict[str, str]) -> PairDataset:
    return PairDataset([*data], Compose([LoadSubjectd("image"), LoadLandmarksd()]), progress=False)


def test_a_pair_has_the_landmarks_of_both_where_both_have_them(tmp_path: Path) -> None:
    bare = subject(tmp_path, name="c")
    del bare["landmarks"]
    pairs = dataset(subject(tmp_path), subject(tmp_path, VOXELS + 0.5, "b"), bare)
    item = pairs[1, 0]
    assert item["moving_landmarks"].dtype == torch.float32
    np.testing.assert_allclose(item["moving_landmarks"] - item["fixed_landmarks"], np.full((3, 3), 0.5))
    assert not any("landmarks" in key for place in ((0, 2), (2, 0)) for key in pairs[place])
    mirrored = pairs[1, 0, (0, 2)]
    assert bright(mirrored["fixed"][0]) == sorted(mirrored["fixed_landmarks"].long().tolist())


def test_lists_of_unequal_length_do_not_correspond(tmp_path: Path) -> None:
    pairs = dataset(subject(tmp_path), subject(tmp_path, VOXELS[:2], "b"))
    with pytest.raises(InputError, match=r"b\.csv holds 2 landmarks and .*a\.csv 3, but line n"):
        pairs[1, 0]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data pack is not beside the repository")
def test_published_errors_of_learn2reg_before_registration(tmp_path: Path) -> None:
    # Its images are not there: two of their size and voxels stand for them.
    data = []
    for phase in (0, 1):
        path = tmp_path / f"{phase}.nii.gz"
        image = np.zeros((192, 192, 208), np.uint8)
        image[0] = 1
        nibabel.save(nibabel.Nifti1Image(image, np.diag([1.75, 1.25, 1.75, 1])), path)
        points = REAL / f"landmarks_LungCT_0001_{phase:04d}.csv"
        data.append({"id": str(phase), "image": str(path), "landmarks": str(points)})
    for spacing, steps in (((1.75, 1.25, 1.75), []), ((2, 2, 2), [WorkingGridd("image", (2, 2, 2), (175, 175, 175))])):
        fixed, moving = (load(one, *steps)["landmarks"][None] for one in data)
        assert float(tre_l2r(None, moving, fixed, spacing).mean()) == pytest.approx(20.180, abs=1e-3)

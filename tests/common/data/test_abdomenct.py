# SPDX-License-Identifier: Apache-2.0
"""Abdominal CT: both layouts of the task, the half grid, the body."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, PrepareAbdomend, load_split, prepare_abdomen, read_section
from common.data.abdomen import body_mask

LAYOUTS = {
    "img": ("img/img{:04d}.nii.gz", "label/label{:04d}.nii.gz"),
    "imagesTr": ("imagesTr/AbdomenCTCT_{:04d}_0000.nii.gz", "labelsTr/AbdomenCTCT_{:04d}_0000.nii.gz"),
}


def empty_files(folder: Path, layout: str, numbers: Iterable[int]) -> Path:
    for pattern in LAYOUTS[layout]:
        for number in numbers:
            path = folder / pattern.format(number)
            path.parent.mkdir(exist_ok=True)
            path.touch()
    return folder


def write_scan(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sections_are_those_of_the_published_split(tmp_path: Path, layout: str) -> None:
    empty_files(tmp_path, layout, range(1, 31))
    sections = {s: read_section(tmp_path, "abdomenct", s).subjects for s in ("training", "validation", "test")}
    numbers = {section: [int(subject["id"]) for subject in subjects] for section, subjects in sections.items()}
    assert numbers == {
        "training": list(range(1, 21)),
        "validation": [21, 22, 23],
        "test": list(range(24, 31)),
    }
    image, label = (tmp_path / pattern.format(21) for pattern in LAYOUTS[layout])
    assert sections["validation"][0] == {"id": "0021", "image": str(image), "label": str(label)}


def test_every_ordered_pair_of_a_section_counts(tmp_path: Path) -> None:
    empty_files(tmp_path, "img", range(1, 31))
    for section, count in (("training", 380), ("validation", 6), ("test", 42)):
        pairs = read_section(tmp_path, "abdomenct", section).every_pair()
        assert len(set(pairs)) == len(pairs) == count and all(moving != fixed for moving, fixed in pairs)


def test_a_scan_without_labels_is_a_subject_without_label(tmp_path: Path) -> None:
    empty_files(tmp_path, "img", range(21, 24))
    (tmp_path / "label" / "label0022.nii.gz").unlink()
    subjects = read_section(tmp_path, "abdomenct", "validation").subjects
    assert ["label" in subject for subject in subjects] == [True, False, True]


def test_missing_and_further_people_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty_files(tmp_path, "img", range(20, 34))
    with caplog.at_level(logging.WARNING):
        assert len(read_section(tmp_path, "abdomenct", "test").subjects) == 7
    assert "lacks 19 of the 30 people" in caplog.text and "0001" in caplog.text
    assert "3 scans outside the published split, such as 0031" in caplog.text


def test_people_of_the_dual_pyramid_benchmark_have_their_own_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = load_split("abdomenct_dp_v2")
    for folder, numbers in (("Training", [*range(1, 11), *range(21, 41)]), ("Testing", range(61, 81))):
        (tmp_path / folder).mkdir()
        empty_files(tmp_path / folder, "img", numbers)
    for path in (tmp_path / "Testing" / "label").iterdir():
        path.unlink()
    sections = {name: read_section(tmp_path, "abdomenct_dp", name) for name in ("training", "validation", "test")}
    for section, key in (("training", "train"), ("validation", "val"), ("test", "test")):
        assert [subject["id"] for subject in sections[section].subjects] == split[key]
    assert sections["training"].pairs is None
    assert ["label" in subject for subject in sections["training"].subjects] == [True] * 10 + [False] * 20
    for section, key in (("validation", "val"), ("test", "test")):
        listing = sections[section]
        ids = [subject["id"] for subject in listing.subjects]
        assert [[ids[f], ids[m]] for m, f in listing.every_pair()] == split[f"pairs_{key}"]
    assert sections["test"].subjects[0]["label"].endswith("Training/label/label0001.nii.gz") and not caplog.text


def test_the_dual_pyramid_benchmark_does_not_go_by_other_numbers(tmp_path: Path) -> None:
    empty_files(tmp_path, "imagesTr", range(1, 31))
    with pytest.raises(InputError, match=r"expected imgNNNN\.nii\.gz .*use --reader abdomenct"):
        read_section(tmp_path, "abdomenct_dp")
    with pytest.raises(InputError, match="no list mine.json"):
        read_section(tmp_path, "abdomenct_dp", "training", "mine.json")


def test_unusable_folders_get_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"expected img/imgNNNN\.nii\.gz"):
        read_section(tmp_path, "abdomenct", "training")
    empty_files(tmp_path, "img", range(31, 40))
    with pytest.raises(InputError, match="None of the 9 scans"):
        read_section(tmp_path, "abdomenct", "training")
    with pytest.raises(InputError, match="use the reader 'datalist'"):
        read_section(tmp_path, "abdomenct", "training", "mine.json")
    with pytest.raises(InputError, match="no section 'training'"):
        read_section(empty_files(tmp_path, "img", range(21, 24)), "abdomenct", "training")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16])
def test_transform_prepares_as_the_function_does(tmp_path: Path, dtype: type) -> None:
    rng = np.random.default_rng(0)
    hu = rng.integers(-1024, 1500, (12, 9, 11)).astype(np.int16)
    labels: np.ndarray = rng.integers(0, 14, hu.shape).astype(dtype)
    affine = np.diag([2.0, -2.0, 2.5, 1.0])
    files = {name: write_scan(tmp_path / f"{name}.nii.gz", a, affine) for name, a in (("image", hu), ("label", labels))}
    subject = PrepareAbdomend()(LoadSubjectd()(files))
    image, label = prepare_abdomen(hu, labels)
    assert label is not None and subject["image"].dtype == torch.float32
    np.testing.assert_array_equal(subject["image"][0].numpy(), image)
    np.testing.assert_array_equal(subject["label"][0].numpy(), label)


def test_half_grid_keeps_the_end_points_in_the_world(tmp_path: Path) -> None:
    affine = np.array([[0, -2, 0, 5], [2, 0.1, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]], float)
    ramp = np.arange(12.0)[:, None, None] * np.ones((12, 9, 10)) * 50
    subject = PrepareAbdomend()(LoadSubjectd()({"image": write_scan(tmp_path / "a.nii.gz", ramp, affine)}))
    half, size = subject["image"], (12, 9, 10)
    assert half.shape == (1, 6, 4, 5)
    for corner in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)):
        whole = affine @ [*(c * (n - 1) for c, n in zip(corner, size, strict=True)), 1]
        halved = half.affine.numpy() @ [*(c * (n - 1) for c, n in zip(corner, half.shape[1:], strict=True)), 1]
        np.testing.assert_allclose(halved, whole, atol=1e-9)


def test_zoom_1_windows_and_keeps_the_grid(tmp_path: Path) -> None:
    affine = np.array([[0, -2, 0, 5], [2, 0.1, 0, -7], [0, 0, 3, 9], [0, 0, 0, 1]], float)
    rng = np.random.default_rng(2)
    hu = rng.integers(-1024, 1500, (12, 9, 11)).astype(np.int16)
    scan = {"image": write_scan(tmp_path / "a.nii.gz", hu, affine)}
    scan["label"] = write_scan(tmp_path / "b.nii.gz", rng.integers(0, 14, hu.shape).astype(np.uint8), affine)
    loaded = LoadSubjectd()(scan)
    subject = PrepareAbdomend(zoom=1)(loaded)
    # The splines pass through the samples up to rounding in single precision.
    np.testing.assert_allclose(subject["image"][0].numpy(), (np.clip(hu, -500, 800) + 500) / 1300, atol=1e-5)
    np.testing.assert_array_equal(subject["label"].numpy(), loaded["label"].numpy())
    np.testing.assert_array_equal(subject["image"].affine.numpy(), loaded["image"].affine.numpy())


@pytest.mark.parametrize("zoom", [0, -0.5, 2, float("nan")])
def test_zoom_that_is_no_share_is_refused(zoom: float) -> None:
    with pytest.raises(InputError, match="give a number above 0 and at most 1"):
        PrepareAbdomend(zoom=zoom)


def test_prepared_scans_of_one_grid_make_a_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    data = [
        {"id": name, "image": write_scan(tmp_path / f"{name}.nii", rng.uniform(-900, 900, (8, 9, 7)), np.eye(4))}
        for name in "ab"
    ]
    item = PairDataset(data, lambda subject: PrepareAbdomend()(LoadSubjectd()(subject)), progress=False)[0, 1]
    assert item["moving"].shape == item["fixed"].shape == (1, 4, 4, 4)
    np.testing.assert_allclose(np.diag(item["affine"]), [7 / 3, 8 / 3, 2, 1])


def test_body_is_the_largest_part_with_its_holes() -> None:
    hu = np.full((20, 20, 6), -1000.0)
    hu[4:15, 4:15] = 40
    hu[7:10, 7:10] = -900
    hu[17:19, 2:18] = 100
    expected = np.zeros(hu.shape, bool)
    expected[4:15, 4:15] = True
    np.testing.assert_array_equal(body_mask(hu), expected)
    assert not body_mask(np.full((4, 4, 4), -1000)).any()

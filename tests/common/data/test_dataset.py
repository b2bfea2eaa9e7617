# SPDX-License-Identifier: Apache-2.0
"""Pairs of cached subjects."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import LoadSubjectd, PairDataset, PairSampler, read_section
from common.data.pairs import DrawnPair


class Count(MapTransform):
    """Counts how often subjects are decoded."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__("image")
        self.calls = 0

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Count one."""
        self.calls += 1
        return dict(data)


def read(path: Path) -> np.ndarray:
    return np.asanyarray(nib.Nifti1Image.from_filename(path).dataobj)


def dataset(folder: Path, section: str = "training", **arguments: Any) -> PairDataset:
    return PairDataset(read_section(folder, "datalist", section).subjects, LoadSubjectd(), progress=False, **arguments)


def test_a_pair_holds_both_subjects_as_plain_tensors(datalist: Path) -> None:
    item = dataset(datalist)[0, 2]
    assert set(item) == {
        *("moving", "fixed", "moving_label", "fixed_label", "affine", "draw"),
        *("moving_id", "fixed_id", "path_moving", "path_fixed"),
    }
    for key in ("moving", "fixed", "moving_label", "fixed_label", "affine"):
        assert isinstance(item[key], torch.Tensor) and not isinstance(item[key], MetaTensor)
    assert (item["moving_id"], item["fixed_id"]) == ("P_0000", "P_0002")
    for side, name in (("moving", "P_0000"), ("fixed", "P_0002")):
        image = read(datalist / "imagesTr" / f"{name}_0000.nii.gz")
        label = read(datalist / "labelsTr" / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(item[side].numpy()[0], image)
        np.testing.assert_array_equal(item[f"{side}_label"].numpy()[0], label)
        assert item[f"path_{side}"].endswith(f"{name}_0000.nii.gz")
    assert item["moving"].dtype == torch.float32 and item["moving_label"].dtype == torch.int32
    assert item["affine"].dtype == torch.float64 and item["affine"].shape == (4, 4)


def test_a_flipped_pair_is_mirrored_as_a_whole_and_its_affine_still_tells_where_it_is(datalist: Path) -> None:
    pairs = dataset(datalist)
    plain = pairs[0, 2]
    for axes in ((), (0,), (1,), (0, 2)):
        item = pairs[0, 2, axes]
        for name in ("moving", "fixed", "moving_label", "fixed_label"):
            expected = np.flip(plain[name].numpy(), [1 + axis for axis in axes])
            np.testing.assert_array_equal(item[name].numpy(), expected)
        voxel = torch.tensor([1.0, 2, 3, 1], dtype=torch.float64)
        mirrored = voxel.clone()
        for axis in axes:
            mirrored[axis] = plain["fixed"].shape[1 + axis] - 1 - voxel[axis]
        torch.testing.assert_close(item["affine"] @ mirrored, plain["affine"] @ voxel)
    assert torch.equal(pairs[0, 2]["moving"], plain["moving"]), "the cache was written to"


def test_a_flat_pair_is_mirrored_along_the_axes_that_it_has(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((6, 5), dtype=np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii.gz")
    one = {"id": "a", "image": str(tmp_path / "a.nii.gz")}
    item = PairDataset([one, one], Compose([LoadSubjectd("image")]), progress=False)[0, 1, (0, 2)]
    np.testing.assert_array_equal(item["fixed"][0].numpy(), values[::-1])


def test_every_further_tensor_of_the_subjects_comes_with_the_pair(datalist: Path) -> None:
    def further(subject: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        extra: dict[Hashable, Any] = {
            "mask": subject["image"] > 0.5,
            "keypoints": torch.tensor([[1.0, 2, 3], [0, 0, 0]]),
        }
        return {**subject, **extra, "name": "kept back"}

    pairs = PairDataset(read_section(datalist).subjects, Compose([LoadSubjectd(), further]), progress=False)
    item, mirrored = pairs[0, 2], pairs[DrawnPair(0, 2, (1,), (7, 3, 5))]
    assert torch.equal(item["fixed_mask"], (item["fixed"] > 0.5).float()) and "fixed_name" not in item
    assert torch.equal(mirrored["moving_mask"], item["moving_mask"].flip(2))
    assert mirrored["fixed_keypoints"].tolist() == [
        [1, item["fixed"].shape[2] - 3, 3],
        [0, item["fixed"].shape[2] - 1, 0],
    ]
    assert mirrored["draw"].tolist() == [7, 3, 5] and item["draw"].tolist() == [0, 0, 0]


def test_subjects_without_images_are_pairs_of_label_maps(datalist: Path) -> None:
    subjects = [
        {key: value for key, value in subject.items() if key != "image"} for subject in read_section(datalist).subjects
    ]
    item = PairDataset(subjects, LoadSubjectd("label"), progress=False)[0, 2]
    assert set(item) == {
        *("moving_label", "fixed_label", "affine", "draw", "moving_id", "fixed_id", "path_moving", "path_fixed"),
    }
    assert set(PairDataset(read_section(datalist).subjects, LoadSubjectd("label"), progress=False)[0, 2]) == set(item)
    assert item["path_fixed"] == str(subjects[2]["label"])


def test_length_and_data_are_the_subjects(datalist: Path) -> None:
    pairs = dataset(datalist)
    assert len(pairs) == 3 and pairs.data == read_section(datalist).subjects


@pytest.mark.parametrize(("cache_rate", "decoded"), [(1.0, 3), (0.0, 4)])
def test_cached_subjects_are_decoded_once(datalist: Path, cache_rate: float, decoded: int) -> None:
    count = Count()
    pairs = PairDataset(
        read_section(datalist).subjects, Compose([LoadSubjectd(), count]), cache_rate, num_workers=1, progress=False
    )
    first, second = pairs[0, 1], pairs[0, 1]
    assert count.calls == decoded and torch.equal(first["moving"], second["moving"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_collates_the_listed_pairs(datalist: Path, workers: int) -> None:
    pairs = dataset(datalist, "validation")
    listed = read_section(datalist, "datalist", "validation").every_pair()
    loader = DataLoader(pairs, 2, sampler=PairSampler(pairs, "listed", listed, drop_last=False), num_workers=workers)
    (batch,) = list(loader)
    assert batch["moving"].shape == batch["fixed_label"].shape == (2, 1, 5, 6, 7)
    assert batch["moving_id"] == ["P_0004", "P_0003"] and batch["fixed_id"] == ["P_0003", "P_0005"]


def test_a_pair_says_whether_both_have_labels_where_some_have_none(datalist: Path) -> None:
    subjects = read_section(datalist).subjects
    labels = read(Path(subjects[0]["label"])), read(Path(subjects[2]["label"]))
    del subjects[1]["label"]
    pairs = PairDataset(subjects, LoadSubjectd(), progress=False)
    whole, half = pairs[0, 2], pairs[0, 1]
    assert pairs.labelled == [True, False, True] and set(whole) == set(half)
    assert whole["labelled"].item() is True and half["labelled"].item() is False
    np.testing.assert_array_equal(whole["moving_label"].numpy()[0], labels[0])
    np.testing.assert_array_equal(whole["fixed_label"].numpy()[0], labels[1])
    assert half["fixed_label"].shape == whole["fixed_label"].shape and half["fixed_label"].dtype == torch.int32
    (batch,) = DataLoader(pairs, 2, sampler=PairSampler(pairs, "listed", [(0, 2), (1, 0)]))
    assert batch["labelled"].tolist() == [True, False] and batch["moving_label"].shape[0] == 2
    # Where all have labels, or none, nothing needs to be said.
    assert "labelled" not in PairDataset(subjects[::2], LoadSubjectd(), progress=False)[0, 1]
    without = [{"id": subject["id"], "image": subject["image"]} for subject in subjects]
    assert not {"labelled", "moving_label"} & set(PairDataset(without, LoadSubjectd(), progress=False)[0, 1])


@pytest.mark.parametrize(
    ("pairs", "count"), [(None, "2 of 6 pairs"), ([(0, 1), (1, 2)], "0 of 2 pairs"), ([(0, 2)] * 3, "3 of 3 pairs")]
)
def test_the_log_says_how_many_pairs_have_labels(
    datalist: Path, pairs: Any, count: str, caplog: pytest.LogCaptureFixture
) -> None:
    subjects = read_section(datalist).subjects
    del subjects[1]["label"]
    made = PairDataset(subjects, LoadSubjectd(), progress=False)
    PairSampler(made, pairs=pairs)
    assert f"Labels for {count}: 1 of 3 scans have none, such as {subjects[1]['image']}" in caplog.text
    caplog.clear()
    PairSampler(PairDataset(subjects[::2], LoadSubjectd(), progress=False))
    assert not caplog.text


def test_different_shapes_are_refused_with_both_files(datalist: Path) -> None:
    path = datalist / "imagesTr" / "P_0001_0000.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((5, 6, 8)), np.eye(4)), path)
    with pytest.raises(InputError, match=r"P_0000_0000.nii.gz has shape \(1, 5, 6, 7\) .*P_0001.* \(1, 5, 6, 8\)"):
        dataset(datalist)[0, 1]


def test_different_affines_are_refused_with_both_files(datalist: Path) -> None:
    path = datalist / "imagesTr" / "P_0001_0000.nii.gz"
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    nib.save(nib.Nifti1Image(read(path), shifted), path)
    with pytest.raises(InputError, match="P_0000.* and .*P_0001.* lie up to"):
        dataset(datalist)[0, 1]


def test_a_damaged_file_is_named_while_the_cache_is_filled_and_later(datalist: Path) -> None:
    (datalist / "imagesTr" / "P_0001_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="P_0001_0000.nii.gz cannot be read as NIfTI"):
        dataset(datalist)
    with pytest.raises(InputError, match="P_0001_0000.nii.gz cannot be read as NIfTI"):
        dataset(datalist, cache_rate=0.0)[0, 1]


def test_no_subject_is_refused() -> None:
    with pytest.raises(InputError, match="list of subjects is empty"):
        PairDataset([], LoadSubjectd())

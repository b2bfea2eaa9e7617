# SPDX-License-Identifier: Apache-2.0
"""Both phases of lungs: Learn2Reg with and without its JSON, DIR-Lab, what lies beside the scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data import read_section


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def scans(data: str, *numbers: int, folder: str = "imagesTr") -> list[str]:
    return [f"{folder}/{data}_{number:04d}_{phase:04d}.nii.gz" for number in numbers for phase in (0, 1)]


def pairs(folder: Path, section: str, dataset_json: str | None = None) -> list[tuple[str, str]]:
    """Ids (moving, fixed) of the listed pairs."""
    listing = read_section(folder, "lungct", section, dataset_json)
    assert listing.pairs is not None
    return [(listing.subjects[moving]["id"], listing.subjects[fixed]["id"]) for moving, fixed in listing.pairs]


def write_list(folder: Path, **content: Any) -> None:
    (folder / "LungCT_dataset.json").write_text(json.dumps(content))


def both(number: int) -> dict[str, str]:
    return dict(zip(("fixed", "moving"), (f"./{name}" for name in scans("LungCT", number)), strict=True))


@pytest.mark.parametrize(("data", "held_out", "trained"), [("LungCT", 3, 4), ("NLST", 101, 3)])
def test_without_a_list_the_official_validation_cases_are_held_out(
    tmp_path: Path, data: str, held_out: int, trained: int
) -> None:
    touch(tmp_path, *scans(data, trained, held_out), *scans(data, 300, folder="imagesTs"))
    # A scan without its other phase is in no pair.
    touch(tmp_path, f"imagesTr/{data}_0055_0000.nii.gz")
    for section, number in (("training", trained), ("validation", held_out), ("test", 300)):
        assert pairs(tmp_path, section) == [(f"{data}_{number:04d}_0001", f"{data}_{number:04d}_0000")]


def test_pairs_of_the_release_are_as_they_are_listed(tmp_path: Path) -> None:
    touch(tmp_path, *scans("LungCT", 1, 4, 5))
    listed = [{"image": f"./{name}"} for name in scans("LungCT", 1, 4, 5)]
    turned = dict(zip(("moving", "fixed"), both(5).values(), strict=True))
    write_list(
        tmp_path,
        training=listed,
        training_paired_images=[both(1), both(4), turned],
        registration_val=[both(1)],
    )
    # What is held out is not trained with.
    assert pairs(tmp_path, "training") == [
        ("LungCT_0004_0001", "LungCT_0004_0000"),
        ("LungCT_0005_0000", "LungCT_0005_0001"),
    ]
    assert pairs(tmp_path, "validation") == [("LungCT_0001_0001", "LungCT_0001_0000")]


def test_scans_that_a_list_does_not_pair_are_paired_within_a_person(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *scans("LungCT", 4, 7))
    write_list(tmp_path, training=[*reversed(scans("LungCT", 4, 7))], pairings="paired", numPairedTraining=2)
    assert sorted(pairs(tmp_path, "training")) == [
        (f"LungCT_{number}_0001", f"LungCT_{number}_0000") for number in ("0004", "0007")
    ]
    assert not caplog.text


def test_masks_and_points_lie_in_folders_of_their_own(tmp_path: Path) -> None:
    first, second = scans("LungCT", 1)
    touch(tmp_path, first, second, first.replace("images", "masks"), second.replace("images", "masks"))
    for kind, names in (("landmarks", (first,)), ("keypoints", (first, second))):
        touch(tmp_path, *(name.replace("images", kind).replace(".nii.gz", ".csv") for name in names))
    expiration, inspiration = read_section(tmp_path, "lungct", "validation").subjects
    assert expiration["label"] == str(tmp_path / "masksTr" / Path(first).name)
    # Points by hand come first.
    assert expiration["landmarks"] == str(tmp_path / "landmarksTr" / "LungCT_0001_0000.csv")
    assert inspiration["landmarks"] == str(tmp_path / "keypointsTr" / "LungCT_0001_0001.csv")
    assert "landmark_coordinates" not in expiration


def test_a_list_may_name_the_landmarks(tmp_path: Path) -> None:
    touch(tmp_path, *scans("LungCT", 4), "points/4.txt", "points/4.fcsv", "landmarksTr/LungCT_0004_0000.csv")
    expiration, inspiration = scans("LungCT", 4)
    entries = [
        {"image": expiration, "landmarks": "points/4.txt", "landmark_coordinates": "lps"},
        {"image": inspiration, "landmarks": "points/4.fcsv"},
    ]
    write_list(tmp_path, training=[], validation=entries)
    first, second = read_section(tmp_path, "lungct", "validation").subjects
    assert first["landmarks"] == str(tmp_path / "points" / "4.txt") and first["landmark_coordinates"] == "lps"
    assert second["landmarks"] == str(tmp_path / "points" / "4.fcsv") and "landmark_coordinates" not in second
    assert read_section(tmp_path, "datalist", "validation").subjects[0]["landmarks"] == first["landmarks"]
    (tmp_path / "points" / "4.fcsv").unlink()
    with pytest.raises(InputError, match=r"1 listed file\(s\) .* do not exist, the first is .*4\.fcsv"):
        read_section(tmp_path, "lungct", "validation")


def test_copdgene_of_dir_lab_is_a_test_set_whose_landmarks_count_from_1(tmp_path: Path) -> None:
    names = ("copd1/copd1_iBHCT", "copd1/copd1_eBHCT", "copd10/copd10_iBHCT", "copd10/copd10_eBHCT")
    touch(tmp_path, *(f"{name}.nii.gz" for name in names), "copd1/copd1_iBHCT_mask.nii.gz")
    touch(tmp_path, *(f"texts/copd1_300_{phase}BH_xyz_r1.txt" for phase in "ie"))
    listing = read_section(tmp_path, "lungct", "test")
    assert pairs(tmp_path, "test") == [("copd1_iBHCT", "copd1_eBHCT"), ("copd10_iBHCT", "copd10_eBHCT")]
    subjects = {subject["id"]: subject for subject in listing.subjects}
    assert subjects["copd1_iBHCT"] == {
        "id": "copd1_iBHCT",
        "image": str(tmp_path / "copd1" / "copd1_iBHCT.nii.gz"),
        "label": str(tmp_path / "copd1" / "copd1_iBHCT_mask.nii.gz"),
        "mask": str(tmp_path / "copd1" / "copd1_iBHCT_mask.nii.gz"),
        "landmarks": str(tmp_path / "texts" / "copd1_300_iBH_xyz_r1.txt"),
        "landmark_coordinates": "voxel_from_1",
    }
    assert set(subjects["copd10_eBHCT"]) == {"id", "image"}


def test_extreme_phases_of_4dct_of_dir_lab(tmp_path: Path) -> None:
    touch(tmp_path, "case1_T00_s.nii.gz", "case1_T50_s.nii.gz", "case1_T10_s.nii.gz", "case6_T00.nii", "case6_T50.nii")
    touch(tmp_path, "ExtremePhases/Case1_300_T00_xyz.txt", "Sampled4D/case1_4D75_T00_xyz.txt")
    touch(tmp_path, "Sampled4D/case6_4D75_T50_xyz.txt")
    assert pairs(tmp_path, "test") == [("case1_T00_s", "case1_T50_s"), ("case6_T00", "case6_T50")]
    points = {subject["id"]: subject.get("landmarks") for subject in read_section(tmp_path, "lungct", "test").subjects}
    assert points == {
        "case1_T00_s": str(tmp_path / "ExtremePhases" / "Case1_300_T00_xyz.txt"),
        "case1_T50_s": None,
        "case6_T00": None,
        "case6_T50": str(tmp_path / "Sampled4D" / "case6_4D75_T50_xyz.txt"),
    }


def test_folders_and_lists_without_two_phases_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/LungCT_0001_0000.nii.gz", "scan.nii.gz")
    with pytest.raises(InputError, match=r"has no two phases of a lung in a known form; expected a JSON of Learn2Reg"):
        read_section(tmp_path, "lungct", "test")
    write_list(tmp_path, training=["scan.nii.gz", "imagesTr/LungCT_0001_0000.nii.gz"])
    with pytest.raises(InputError, match=r"'training' .*has no two phases .* under 'training_paired_images', each as"):
        read_section(tmp_path, "lungct", "training")

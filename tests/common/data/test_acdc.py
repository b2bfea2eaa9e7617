# SPDX-License-Identifier: Apache-2.0
"""The layouts of ACDC, and what the bundle makes of its frames."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from common.data import (
    CheckSubjectd,
    ListedSpacingd,
    LoadSubjectd,
    PairDataset,
    load_split,
    read_section,
)

ROOT = Path(__file__).resolve().parents[3]
CARDIAC = ROOT.parent / "shared" / "data" / "cardiac"


def write_original(folder: Path, numbers: list[int], text: str = "ED: 1\nES: 12\nGroup: DCM\nNbFrame: 30\n") -> None:
    """Empty files in the folders of the challenge."""
    for number in numbers:
        patient = folder / f"patient{number:03d}"
        patient.mkdir(parents=True)
        (patient / "Info.cfg").write_text(text)
        for frame in ("01", "12"):
            for kind in ("", "_gt"):
                (patient / f"{patient.name}_frame{frame}{kind}.nii.gz").touch()
        (patient / f"{patient.name}_4d.nii.gz").touch()


def write_prepared(folder: Path, numbers: list[int]) -> None:
    """Empty files of the prepared layout."""
    folder.mkdir(parents=True)
    for number in numbers:
        for name in ("ed_img", "ed_seg", "es_img", "es_seg"):
            (folder / f"patient{number:03d}_{name}.nii.gz").touch()


def ids(folder: Path, section: str) -> list[str]:
    return [subject["id"] for subject in read_section(folder, "acdc", section).subjects]


def named_pairs(folder: Path, section: str) -> list[tuple[str, str]]:
    listing = read_section(folder, "acdc", section)
    return [(listing.subjects[moving]["id"], listing.subjects[fixed]["id"]) for moving, fixed in listing.every_pair()]


@pytest.mark.parametrize("below", [("", ""), ("training", "testing"), ("database/training", "database/testing")])
def test_published_split_divides_the_original_layout(tmp_path: Path, below: tuple[str, str]) -> None:
    write_original(tmp_path / below[0], list(range(1, 101)))
    write_original(tmp_path / below[1], list(range(101, 151)))
    split = load_split("acdc_eoir")
    for section, key in (("training", "train"), ("validation", "val"), ("test", "test")):
        expected = [f"patient{number:03d}_{phase}" for number in split[key] for phase in ("ed", "es")]
        assert ids(tmp_path, section) == expected
    assert (len(ids(tmp_path, "training")), len(ids(tmp_path, "validation")), len(ids(tmp_path, "test"))) == (
        170,
        30,
        100,
    )


def test_info_chooses_the_frames(tmp_path: Path) -> None:
    write_original(tmp_path, [1])
    ed, es = read_section(tmp_path, "acdc", "training").subjects
    folder = tmp_path / "patient001"
    assert ed == {
        "id": "patient001_ed",
        "image": str(folder / "patient001_frame01.nii.gz"),
        "label": str(folder / "patient001_frame01_gt.nii.gz"),
    }
    assert es["image"].endswith("_frame12.nii.gz") and es["label"].endswith("_frame12_gt.nii.gz")


def test_pairs_stay_within_a_patient_and_evaluation_lists_both_directions(tmp_path: Path) -> None:
    write_prepared(tmp_path / "train", [1, 2, 18])
    write_prepared(tmp_path / "test", [101])
    assert named_pairs(tmp_path, "training") == [
        ("patient001_ed", "patient001_es"),
        ("patient002_ed", "patient002_es"),
    ]
    for section, patient in (("validation", "patient018"), ("test", "patient101")):
        ed, es = f"{patient}_ed", f"{patient}_es"
        assert named_pairs(tmp_path, section) == [(ed, es), (es, ed)]


def test_frames_without_label_files_have_no_label(tmp_path: Path) -> None:
    write_original(tmp_path, [101])
    for file in tmp_path.rglob("*_gt.nii.gz"):
        file.unlink()
    assert all("label" not in subject for subject in read_section(tmp_path, "acdc", "test").subjects)


def test_a_list_beside_the_patients_replaces_the_published_split(tmp_path: Path) -> None:
    write_original(tmp_path, [1, 2, 18])
    split = {"train": [{"id": "patient018", "spacing_mm": [1.5, 1.5, 10]}], "val": [{"id": "patient001"}], "test": []}
    (tmp_path / "dataset.json").write_text(json.dumps(split))
    assert ids(tmp_path, "training") == ["patient018_ed", "patient018_es"]
    assert ids(tmp_path, "validation") == ["patient001_ed", "patient001_es"]
    subjects = read_section(tmp_path, "acdc", "training").subjects
    assert [subject.get("spacing") for subject in subjects] == ["1.5 1.5 10.0"] * 2
    with pytest.raises(InputError, match="has no section 'test'"):
        ids(tmp_path, "test")


def test_a_data_list_of_another_kind_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_original(tmp_path, [1])
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [], "name": "ACDC"}))
    with caplog.at_level(logging.INFO):
        assert ids(tmp_path, "training") == ["patient001_ed", "patient001_es"]
    assert "published split is used" in caplog.text


def test_info_without_the_frames_is_refused(tmp_path: Path) -> None:
    write_original(tmp_path, [1], "ED: 1\nGroup: DCM\n")
    with pytest.raises(InputError, match=r"patient001.Info.cfg does not say which frame is ES; it needs"):
        ids(tmp_path, "training")
    (tmp_path / "patient001" / "Info.cfg").write_text("Group: DCM\n")
    with pytest.raises(InputError, match="which frame is ED and ES"):
        ids(tmp_path, "training")
    (tmp_path / "patient001" / "Info.cfg").unlink()
    with pytest.raises(InputError, match=r"patient001 has no Info.cfg"):
        ids(tmp_path, "training")


def test_a_missing_frame_is_refused(tmp_path: Path) -> None:
    write_original(tmp_path / "a", [1])
    (tmp_path / "a" / "patient001" / "patient001_frame12.nii.gz").unlink()
    with pytest.raises(InputError, match="has no patient001_frame12.nii.gz, but its Info.cfg names that frame"):
        ids(tmp_path / "a", "training")
    write_prepared(tmp_path / "b" / "train", [1])
    (tmp_path / "b" / "train" / "patient001_es_img.nii.gz").unlink()
    with pytest.raises(InputError, match="has no patient001_es_img.nii.gz, but a patient needs both"):
        ids(tmp_path / "b", "training")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": [{"id": "patient002"}]}, "names patient002, but .* has no such patient"),
        ({"train": ["patient001"]}, "must have lists of patients"),
        (
            {"train": [{"id": "patient001", "spacing_mm": [1.5, 0, 10]}]},
            r"'spacing_mm' of patient001 .* is \[1.5, 0, 10\]",
        ),
        ({"train": [{"id": "patient001", "spacing_mm": 1.5}]}, "three millimetres above 0"),
    ],
)
def test_a_damaged_split_is_refused(tmp_path: Path, split: dict[str, list[object]], message: str) -> None:
    write_original(tmp_path, [1])
    (tmp_path / "dataset.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match=message):
        ids(tmp_path, "training")


def test_a_split_that_was_asked_for_must_exist_and_be_one(tmp_path: Path) -> None:
    write_original(tmp_path, [1])
    with pytest.raises(InputError, match="The split .*other.json does not exist"):
        read_section(tmp_path, "acdc", "training", "other.json")


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "patient001_full").mkdir()
    with pytest.raises(InputError, match="is no known form of ACDC"):
        ids(tmp_path, "training")


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> str:
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


def frame(folder: Path, name: str, affine: np.ndarray, **facts: str) -> dict[str, str]:
    """A frame of 70 x 60 x 9 voxels: a bright block, whose label map is that block."""
    label = np.zeros((70, 60, 9), np.uint8)
    label[25:45, 20:40, 2:7] = 3
    label[30:40, 25:35, 3:6] = 2
    rng = np.random.default_rng(len(name))
    image = (100 + 500 * (label > 0) + rng.integers(0, 9, label.shape)).astype(np.int16)
    return {
        "id": name,
        "image": save(folder / f"{name}.nii.gz", image, affine),
        "label": save(folder / f"{name}_gt.nii.gz", label, affine),
        **facts,
    }


def preprocessing(config: str = "train", **options: object) -> Callable[[dict[str, str]], Any]:
    """What the bundle's configuration does to one subject."""
    parser = ConfigParser(ConfigParser.load_config_file(ROOT / "bundles" / "eoir_acdc" / "configs" / f"{config}.json"))
    parser.update(dict(options))
    transform: Callable[[dict[str, str]], Any] = parser.get_parsed_content(
        "train::preprocessing" if config == "train" else "preprocessing"
    )
    return transform


@pytest.mark.parametrize("config", ["train", "evaluate"])
def test_image_and_labels_come_to_one_grid_of_the_published_size(tmp_path: Path, config: str) -> None:
    affine = np.diag([-1.4, -1.4, 8.0, 1])
    subjects = [frame(tmp_path, name, affine) for name in ("patient001_ed", "patient001_es")]
    transform = preprocessing(config)
    for subject in subjects:
        made = transform(subject)
        image, label = made["image"], made["label"]
        assert image.shape == label.shape == (1, 128, 128, 16)
        torch.testing.assert_close(image.affine, label.affine)
        torch.testing.assert_close(image.pixdim, torch.tensor([1.8, 1.8, 10.0]), check_dtype=False)
        assert (float(image.min()), float(image.max())) == (0.0, 1.0)
        assert sorted(label.unique().tolist()) == [0, 2, 3]
        # Nearest labels lie where the image is bright, up to the half voxel that linear sampling blurs.
        assert float((image[label > 0] > 0.4).float().mean()) > 0.9
        volume = float((label > 0).sum()) * 1.8 * 1.8 * 10
        assert volume == pytest.approx(20 * 20 * 5 * 1.4 * 1.4 * 8, rel=0.1)
    pair = PairDataset(subjects, transform, progress=False)[0, 1]
    assert pair["moving"].shape == pair["fixed_label"].shape and pair["moving_label"].dtype == torch.int32


def test_the_centre_of_the_image_stays_the_centre(tmp_path: Path) -> None:
    made = preprocessing()(frame(tmp_path, "patient001_ed", np.diag([-1.4, -1.4, 8.0, 1])))
    centre = made["image"].affine.double() @ torch.tensor([63.5, 63.5, 7.5, 1], dtype=torch.float64)
    expected = torch.tensor([-1.4 * 34.5, -1.4 * 29.5, 8.0 * 4, 1], dtype=torch.float64)
    # Grids of another voxel size, and sizes of another parity, share it up to one voxel.
    assert bool(((centre - expected).abs() <= torch.tensor([1.81, 1.81, 10.1, 0.01])).all())


def test_prepared_files_may_keep_their_voxels(tmp_path: Path) -> None:
    made = preprocessing(spacing=None)(frame(tmp_path, "patient001_ed", np.eye(4)))
    assert int((made["label"] > 0).sum()) == 20 * 20 * 5


def test_a_listed_voxel_size_replaces_that_of_the_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    affine = np.diag([-1.0, -1, 1, 1])
    affine[:3, 3] = -23, -64, 5
    listed = ListedSpacingd()(LoadSubjectd()(frame(tmp_path, "patient001_ed", affine, spacing="1.5 1.25 10.0")))
    for key in ("image", "label"):
        assert listed[key].affine.diag().tolist() == [-1.5, -1.25, 10, 1]
        assert listed[key].affine[:3, 3].tolist() == [-23, -64, 5]
    CheckSubjectd()(listed)
    assert caplog.text == ""
    kept = ListedSpacingd()(LoadSubjectd()(frame(tmp_path, "patient001_es", affine)))
    assert kept["image"].affine.diag().tolist() == [-1, -1, 1, 1]
    assert caplog.text.count("says 1 x 1 x 1 mm") == 1 and "patient001_es" in caplog.text


@pytest.mark.skipif(not CARDIAC.is_dir(), reason="no shared/data/cardiac beside the repository")
def test_real_patients_keep_their_overlap() -> None:
    facts = {entry["id"]: entry for entry in json.loads((CARDIAC / "dataset.json").read_text())["val"]}
    subjects = read_section(CARDIAC, "acdc", "validation").subjects
    assert [subject["id"] for subject in subjects[::2]] == [f"{patient}_ed" for patient in facts]
    pairs = PairDataset(subjects, preprocessing(), progress=False)
    for number, patient in enumerate(facts):
        item = pairs[2 * number, 2 * number + 1]
        for label, expected in facts[patient]["initial_dice_ED_ES"].items():
            moving, fixed = item["moving_label"] == int(label), item["fixed_label"] == int(label)
            dice = 2 * float((moving & fixed).sum()) / float(moving.sum() + fixed.sum())
            assert dice == pytest.approx(expected, abs=0.03)
        for phase in ("ED", "ES"):
            name = "moving_label" if phase == "ED" else "fixed_label"
            for label, expected in zip((1, 2, 3), facts[patient][f"volumes_ml_{phase}"], strict=True):
                assert float((item[name] == label).sum()) * 1.8 * 1.8 * 10 / 1000 == pytest.approx(expected, rel=0.12)

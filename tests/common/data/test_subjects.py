# SPDX-License-Identifier: Apache-2.0
"""Readers of data lists, and what a user sees when one is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data import read_section, read_subjects

REAL_BRAINS = Path(__file__).parents[4] / "shared" / "data" / "brain" / "aligned_2mm"


def save_more(folder: Path, name: str) -> None:
    """Copies of an existing subject, in the folders that Learn2Reg keeps for validation."""
    for kind in ("images", "labels"):
        target = folder / f"{kind}Val" / f"{name}_0000.nii.gz"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((folder / f"{kind}Tr" / "P_0000_0000.nii.gz").read_bytes())


def test_training_subjects_are_listed_with_id_image_and_label(datalist: Path) -> None:
    subjects = read_section(datalist, "datalist", "training").subjects
    assert [s["id"] for s in subjects] == ["P_0000", "P_0001", "P_0002"]
    assert subjects[0]["image"] == str(datalist / "imagesTr" / "P_0000_0000.nii.gz")
    assert subjects[0]["label"] == str(datalist / "labelsTr" / "P_0000_0000.nii.gz")
    assert read_subjects(datalist) == subjects


def test_no_key_is_a_prefix_of_a_string_entry(datalist: Path) -> None:
    keys = list(read_section(datalist).subjects[0])
    assert not [(a, b) for a in keys for b in keys if b.startswith(f"{a}_")]


def test_listed_pairs_come_as_moving_then_fixed(datalist: Path) -> None:
    listing = read_section(datalist, "datalist", "validation")
    assert listing.pairs == listing.every_pair() == [(1, 0), (0, 2)]


def test_without_listed_pairs_all_ordered_pairs_are_used(datalist: Path) -> None:
    listing = read_section(datalist, "datalist", "training")
    assert listing.pairs is None
    assert listing.every_pair() == [(1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)]


def test_a_validation_list_of_pairs_gives_its_subjects_and_their_labels(edit_datalist: Callable[..., Path]) -> None:
    pair = {"fixed": "imagesVal/V_1_0000.nii.gz", "moving": "imagesVal/V_2_0000.nii.gz"}
    folder = edit_datalist(validation=[pair], registration_val=[])
    for name in ("V_1", "V_2"):
        save_more(folder, name)
    subjects = read_section(folder, "datalist", "validation").subjects
    assert [s["id"] for s in subjects] == ["V_1", "V_2"]
    assert subjects[1]["label"] == str(folder / "labelsVal" / "V_2_0000.nii.gz")
    assert read_section(folder, "datalist", "validation").every_pair() == [(1, 0)]


def test_images_of_validation_pairs_are_left_out_of_training(
    edit_datalist: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((edit_datalist() / "dataset.json").read_text())
    folder = edit_datalist(training=content["training"] + content["validation"], validation=[])
    with caplog.at_level(logging.INFO):
        training = {s["id"] for s in read_section(folder, "datalist", "training").subjects}
    validation = read_section(folder, "datalist", "validation").subjects
    assert training == {"P_0000", "P_0001", "P_0002"}
    assert all("label" in s for s in validation) and not training & {s["id"] for s in validation}
    assert "3 training images" in caplog.text


IMAGE = "imagesTr/P_{:04d}_0000.nii.gz".format


def pair(fixed: int, moving: int) -> dict[str, str]:
    return {"fixed": IMAGE(fixed), "moving": "./" + IMAGE(moving)}


def training(folder: Path) -> list[tuple[str, str]]:
    """(moving, fixed) ids of the pairs that training uses."""
    listing = read_section(folder)
    assert listing.pairs is not None
    return [(listing.subjects[moving]["id"], listing.subjects[fixed]["id"]) for moving, fixed in listing.pairs]


@pytest.mark.parametrize("form", ["learn2reg", "pairs under training", "mixed"])
def test_training_pairs_are_read_and_unpaired_scans_left_out(
    edit_datalist: Callable[..., Path], form: str, caplog: pytest.LogCaptureFixture
) -> None:
    subjects, pairs = [IMAGE(number) for number in (0, 1, 2, 4)], [pair(0, 2), pair(4, 0)]
    lists: dict[str, dict[str, Any]] = {
        "learn2reg": {"training": subjects, "training_paired_images": pairs, "numPairedTraining": 2},
        "pairs under training": {"training": pairs},
        "mixed": {"training": [*subjects, *pairs]},
    }
    with caplog.at_level(logging.INFO):
        folder = edit_datalist(validation=[IMAGE(3), IMAGE(5)], registration_val=[], **lists[form])
        assert training(folder) == [("P_0002", "P_0000"), ("P_0000", "P_0004")]
    assert [subject["id"] for subject in read_section(folder).subjects] == (["P_0000", "P_0002", "P_0004"])
    assert ("1 training subjects are in no listed pair" in caplog.text) == (form != "pairs under training")
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_training_pairs_that_validation_has_too_are_left_out(
    edit_datalist: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    # As in the lists of NLST, where the validation pairs also stand among those for training.
    folder = edit_datalist(
        training=[IMAGE(number) for number in range(6)],
        validation=[],
        training_paired_images=[pair(0, 1), pair(4, 3), pair(2, 3)],
        registration_val=[pair(3, 4)],
    )
    with caplog.at_level(logging.INFO):
        # The image that both share stays, as an atlas would.
        assert training(folder) == [("P_0001", "P_0000"), ("P_0003", "P_0002")]
    assert "1 training pairs also serve in validation or test" in caplog.text
    edit_datalist(training=[pair(3, 4)], validation=[pair(3, 4)], registration_val=[], training_paired_images=[])
    assert training(folder) == [("P_0004", "P_0003")] and "all 1 training pairs also serve" in caplog.text


def test_the_first_subjects_of_the_list_are_chosen_by_their_number(
    datalist: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        listing = read_section(datalist, first=2)
    assert [subject["id"] for subject in listing.subjects] == ["P_0000", "P_0001"] and listing.pairs is None
    assert "the first 2 of 3 subjects" in caplog.text
    assert read_section(datalist, first=3) == read_section(datalist)


def test_of_listed_pairs_those_among_the_first_subjects_are_left(edit_datalist: Callable[..., Path]) -> None:
    pairs = [pair(0, 4), pair(2, 0), pair(2, 4)]
    folder = edit_datalist(
        training=[IMAGE(number) for number in (0, 1, 2, 4)],
        validation=[IMAGE(3), IMAGE(5)],
        registration_val=[],
        training_paired_images=pairs,
    )
    listing = read_section(folder, first=2)
    assert [subject["id"] for subject in listing.subjects] == ["P_0000", "P_0002"] and listing.pairs == [(0, 1)]
    edit_datalist(training_paired_images=[pair(0, 4), pair(2, 4)])
    with pytest.raises(InputError, match="--train_subjects is 2, but none of the pairs of .* is among these"):
        read_section(folder, first=2)


@pytest.mark.parametrize("number", [1, 4])
def test_too_few_or_more_subjects_than_there_are_is_refused(number: int, datalist: Path) -> None:
    with pytest.raises(InputError, match=f"^--train_subjects is {number}, but .* has 3 subjects; give 2 to that many"):
        read_section(datalist, first=number)


def test_a_training_pair_of_what_is_not_in_training_is_refused(edit_datalist: Callable[..., Path]) -> None:
    folder = edit_datalist(training_paired_images=[pair(0, 1), pair(0, 3)])
    with pytest.raises(
        InputError, match="'training_paired_images' .*P_0003_0000.nii.gz, which is not under 'training'"
    ):
        read_section(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairings": "paired"}, "calls its scans paired, but lists no pairs for training"),
        ({"numPairedTraining": 3}, "calls its scans paired, but lists no pairs for training"),
        ({"numPairedTraining": 3, "training_paired_images": [pair(0, 1)]}, "states 3 training pairs, but lists 1"),
        ({"pairings": "unpaired", "numPairedTraining": 0}, ""),
    ],
)
def test_training_pairs_that_are_stated_but_not_listed_are_said(
    edit_datalist: Callable[..., Path], changes: dict[str, Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    read_section(edit_datalist(**changes))
    assert message in caplog.text and bool(caplog.text) == bool(message)


def test_a_pair_may_name_its_labels(edit_datalist: Callable[..., Path]) -> None:
    named = {**pair(0, 1), "fixed_label": "labelsTr/P_0005_0000.nii.gz", "moving_label": "labelsTr/P_0004_0000.nii.gz"}
    subjects = read_section(edit_datalist(training=[named])).subjects
    assert [Path(subject["label"]).name for subject in subjects] == ["P_0005_0000.nii.gz", "P_0004_0000.nii.gz"]


def test_images_without_labels_and_bare_paths_are_read(edit_datalist: Callable[..., Path]) -> None:
    folder = edit_datalist(training=["./imagesTr/P_0000_0000.nii.gz", {"image": "imagesTr/P_0001_0000.nii.gz"}])
    for file in (folder / "labelsTr").iterdir():
        file.unlink()
    assert [set(s) for s in read_section(folder).subjects] == [{"id", "image"}] * 2


def test_two_images_of_one_person_keep_different_ids(edit_datalist: Callable[..., Path]) -> None:
    folder = edit_datalist(training=["imagesTr/P_0000_0000.nii.gz", "imagesVal/P_0000_0000.nii.gz"])
    save_more(folder, "P_0000")
    assert [s["id"] for s in read_section(folder).subjects] == ["imagesTr-P_0000_0000", "imagesVal-P_0000_0000"]


def test_equal_file_names_take_as_many_folders_as_tell_them_apart(edit_datalist: Callable[..., Path]) -> None:
    images = ["a/anat/t1.nii.gz", "b/anat/t1.nii.gz", "b/anat/t2.nii.gz"]
    folder = edit_datalist(training=images)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    assert [s["id"] for s in read_section(folder).subjects] == ["a-anat-t1", "b-anat-t1", "t2"]


def test_other_json_files_beside_the_data_list_do_not_matter(datalist: Path) -> None:
    (datalist / "labels.json").write_text("[1, 2]")
    assert len(read_section(datalist).subjects) == 3


def test_a_second_data_list_must_be_chosen_by_name(datalist: Path) -> None:
    (datalist / "other.json").write_text((datalist / "dataset.json").read_text())
    with pytest.raises(InputError, match="several data lists .*dataset.json, other.json"):
        read_section(datalist)
    assert len(read_section(datalist, dataset_json="other.json").subjects) == 3


@pytest.mark.parametrize("path", ["../outside.nii.gz", "imagesTr/../../outside.nii.gz", "/etc/outside.nii.gz"])
@pytest.mark.parametrize("form", ["image", "label", "pair"])
def test_paths_that_leave_the_folder_are_refused(edit_datalist: Callable[..., Path], path: str, form: str) -> None:
    inside = "imagesTr/P_0000_0000.nii.gz"
    forms = {
        "image": {"image": path},
        "label": {"image": inside, "label": path},
        "pair": {"fixed": inside, "moving": path},
    }
    with pytest.raises(InputError, match=f"dataset.json names {path}, which leaves the data folder"):
        read_section(edit_datalist(training=[forms[form]]))


@pytest.mark.parametrize("prefix", ["{0}/", "~/", "./", "{0}/imagesTr/../", "{0}//"])
def test_absolute_paths_inside_the_folder_name_its_files(
    edit_datalist: Callable[..., Path], prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edit_datalist()
    monkeypatch.setenv("HOME", str(folder))
    expected = read_section(folder, section="validation")
    prefix = prefix.format(folder)
    content = json.loads((folder / "dataset.json").read_text())
    pairs = [{side: f"{prefix}{path}" for side, path in pair.items()} for pair in content["registration_val"]]
    assert read_section(edit_datalist(registration_val=pairs), section="validation") == expected


def test_a_linked_folder_and_the_home_folder_are_the_data_folder(
    edit_datalist: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = edit_datalist(training=[str(edit_datalist() / f"imagesTr/P_000{i}_0000.nii.gz") for i in (0, 1)])
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "scans").symlink_to(folder, target_is_directory=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images = [Path(subject["image"]) for subject in read_section("~/scans").subjects]
    assert images == [tmp_path / f"home/scans/imagesTr/P_000{i}_0000.nii.gz" for i in (0, 1)]


def test_a_data_list_may_begin_with_a_byte_order_mark(datalist: Path) -> None:
    expected = read_section(datalist)
    path = datalist / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_section(datalist) == expected


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent does not exist"):
        read_section(tmp_path / "absent")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_section(tmp_path)


def test_folder_without_data_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "image.nii.gz").touch()
    with pytest.raises(InputError, match="has no JSON data list"):
        read_section(tmp_path)
    (tmp_path / "some.json").write_text("{}")
    with pytest.raises(InputError, match="no JSON with a 'training' list \\(some.json\\)"):
        read_section(tmp_path)
    with pytest.raises(InputError, match="nothing.json does not exist"):
        read_section(tmp_path, dataset_json="nothing.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"training": [', "dataset.json is not valid JSON"),
        ("[]", "holds a JSON list"),
        ('{"training": 3}', "'training' in the data list .* is a int"),
        ('{"training": [{"img": "a"}]}', "has the entry {'img': 'a'}"),
        ('{"training": [{"image": 3}]}', "has the entry 3 where a file path"),
        ('{"training": [], "registration_val": ["a"]}', "'registration_val' in the data list .* has 'a'"),
    ],
)
def test_damaged_data_list_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_section(tmp_path)


def test_missing_files_are_counted_and_the_first_is_named(datalist: Path) -> None:
    (datalist / "imagesTr" / "P_0001_0000.nii.gz").unlink()
    (datalist / "labelsTr" / "P_0002_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"2 listed file\(s\) of the training .* first is .*P_0001_0000.nii.gz"):
        read_section(datalist)


def test_one_subject_is_not_enough(edit_datalist: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"has 1 subject\(s\)"):
        read_section(edit_datalist(training=["imagesTr/P_0000_0000.nii.gz"]))


@pytest.mark.parametrize("section", ["test", "train"])
def test_wrong_section_lists_what_exists(datalist: Path, section: str) -> None:
    with pytest.raises(InputError, match=f"no section '{section}'.*subjects in: training, validation"):
        read_section(datalist, "datalist", section)


def test_unknown_reader_lists_what_exists(datalist: Path) -> None:
    with pytest.raises(InputError, match="'nifti' is unknown; use one of datalist, oasis"):
        read_section(datalist, "nifti")


@pytest.mark.skipif(not REAL_BRAINS.is_dir(), reason=f"the real brain images are not at {REAL_BRAINS}")
def test_the_real_brain_folder_is_read_as_documented() -> None:
    training, validation = (read_section(REAL_BRAINS, "datalist", s).subjects for s in ("training", "validation"))
    assert len(training) == 22 and [s["id"] for s in validation] == [f"MALF_{n}" for n in (1006, 1018, 1113, 1122)]
    assert not {s["id"] for s in training} & {s["id"] for s in validation}
    pairs = read_section(REAL_BRAINS, "datalist", "validation").every_pair()
    assert len(pairs) == 12 and pairs[0] == (1, 0) and len(set(pairs)) == 12

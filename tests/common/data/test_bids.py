# SPDX-License-Identifier: Apache-2.0
"""Names, inheritance and the reader of data sets in BIDS, on miniatures of empty files."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data import read_section
from common.data.bids import chosen, metadata_of, parse_name, read_tsv


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four participants, the second with two sessions and the fourth without a T1w."""
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.0"}')
    touch(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz", "sub-03/anat/sub-03_T1w.nii")
    touch(tmp_path, *(f"sub-02/ses-{s}/anat/sub-02_ses-{s}_T1w.nii.gz" for s in "ab"), "sub-04/anat/sub-04_T2w.nii.gz")
    return tmp_path


def write_table(root: Path, **sections: str) -> None:
    rows = "".join(f"{name.replace('_', '-')}\t{section}\n" for name, section in sections.items())
    (root / "participants.tsv").write_text(f"participant_id\tsection\n{rows}")


def write_list(root: Path, **content: Any) -> str:
    (root / "split.json").write_text(json.dumps(content))
    return "split.json"


def test_a_name_says_what_is_in_it() -> None:
    file = parse_name("d/sub-01/ses-a/anat/sub-01_ses-a_run-2_space-MNI+1_desc-preproc_T1w.nii.gz")
    assert file is not None and file.suffix == "T1w"
    assert file.prefix == "sub-01_ses-a_run-2" and file.entities["space"] == "MNI+1" and not file.is_in_own_space
    assert file.folder == Path("sub-01/ses-a/anat")


@pytest.mark.parametrize("name", ["sub-01_T1_w.nii.gz", "sub_01_T1w.nii.gz", "sub-0.1_T1w.nii.gz", "sub-01_.nii.gz"])
def test_other_names_say_nothing(name: str) -> None:
    assert parse_name(name) is None


def test_nearer_metadata_count_more_and_those_of_others_not_at_all(root: Path) -> None:
    (root / "T1w.json").write_text('{"EchoTime": 1, "Site": "far"}')
    (root / "acq-x_T1w.json").write_text('{"EchoTime": 9}')
    (root / "sub-01_T1w.json").write_text('{"EchoTime": 2}')
    (root / "sub-01" / "anat" / "sub-01_T1w.json").write_text('{"EchoTime": 3}')
    (root / "sub-01" / "anat" / "sub-01_T2w.json").write_text('{"EchoTime": 4}')
    file = parse_name(root / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert file is not None
    assert metadata_of(file, root) == {"EchoTime": 3, "Site": "far"}


def test_participants_go_by_both_forms_of_their_label(root: Path) -> None:
    assert chosen(root, None) == ["01", "02", "03", "04"]
    assert chosen(root, ["sub-03", "01", "03"]) == ["03", "01"]
    with pytest.raises(InputError, match="no folder sub-1; .* 01, 02, 03, 04"):
        chosen(root, ["1"])


def test_a_table_needs_whole_rows(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("participant_id\tage\nsub-01\t7\nsub-02\n")
    with pytest.raises(InputError, match="'sub-02' has 1 values, but the header 2"):
        read_tsv(tmp_path / "a.tsv")


def test_sections_are_a_column_of_the_participants(root: Path) -> None:
    touch(root, "derivatives/seg/sub-02/ses-b/anat/sub-02_ses-b_dseg.nii.gz", "sub-03/anat/sub-03_desc-a_dseg.nii.gz")
    touch(root, "derivatives/seg/sub-03/anat/sub-03_space-MNI_dseg.nii.gz")
    write_table(root, sub_01="training", sub_02="training", sub_03="test", sub_04="n/a")
    training = read_section(root, "bids", "training")
    assert [subject["id"] for subject in training.subjects] == ["sub-01", "sub-02_ses-a", "sub-02_ses-b"]
    assert training.pairs is None and ["label" in subject for subject in training.subjects] == [False, False, True]
    with pytest.raises(InputError, match="has 1 subject"):
        read_section(root, "bids", "test")
    with pytest.raises(InputError, match="no section 'validation'"):
        read_section(root, "bids", "validation")


def test_a_list_chooses_images_labels_and_sections(root: Path) -> None:
    spaces = ("space-MNI_desc-preproc_T1w", "space-MNI_desc-a_dseg", "space-MNI_desc-b_dseg", "desc-b_dseg")
    touch(root, *(f"sub-{n}/anat/sub-{n}_{end}.nii.gz" for n in ("01", "03") for end in spaces))
    name = write_list(
        root, image="space-MNI_desc-preproc_T1w", label="space-MNI_desc-b_dseg", training=["sub-01", "03"]
    )
    subjects = read_section(root, "bids", "training", name).subjects
    folder = root / "sub-03" / "anat"
    assert subjects[1] == {
        "id": "sub-03",
        "image": str(folder / "sub-03_space-MNI_desc-preproc_T1w.nii.gz"),
        "label": str(folder / "sub-03_space-MNI_desc-b_dseg.nii.gz"),
    }
    (root / name).rename(root / "sections.json")
    assert read_section(root, "bids", "training").subjects == subjects
    ambiguous = write_list(root, image="space-MNI_desc-preproc_T1w", training=["01", "03"])
    with pytest.raises(InputError, match="2 label maps, sub-01_space-MNI_desc-a_dseg.nii.gz and"):
        read_section(root, "bids", "training", ambiguous)


def test_a_participant_without_the_image_is_left_out_with_a_word(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = write_list(root, training=["01", "03", "04"], test=["02"])
    with caplog.at_level(logging.WARNING):
        assert len(read_section(root, "bids", "training", name).subjects) == 2
    assert (
        "1 of 3 participants of the training section have no image *_T1w, such as sub-04; they have: T2w" in caplog.text
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"training": ["01", "9"]}, "names sub-9, of whom there is no folder"),
        ({"training": ["01", "02"], "test": ["sub-01"]}, "names sub-01 twice, in training and test"),
        ({"training": "01"}, "a list of participants is expected"),
        ({"image": "sub-01_T1w", "training": ["01"]}, "'image' in .* is 'sub-01_T1w', but an end of names"),
        ({"image": "FLAIR", "training": ["01"]}, r"No participant .* has an image \*_FLAIR"),
        ({}, "puts nobody into a section"),
    ],
)
def test_lists_that_cannot_be_used(root: Path, content: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        read_section(root, "bids", "training", write_list(root, **content))


def test_a_data_set_without_sections_or_description(root: Path) -> None:
    with pytest.raises(InputError, match="participants.tsv does not exist, so there are no sections"):
        read_section(root, "bids")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-01\t7\n")
    with pytest.raises(InputError, match="no columns participant_id and 'section'"):
        read_section(root, "bids")
    (root / "dataset_description.json").unlink()
    with pytest.raises(InputError, match="is no BIDS data set: it has no dataset_description.json"):
        read_section(root, "bids")

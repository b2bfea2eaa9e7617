# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.checks import InputError
from common.evaluation.pair_files import FIELD_SUFFIXES, Folder, LandmarkFiles, find_field, locate
from common.evaluation.pair_lists import Challenge, ChallengeMetric, ListedPair, PairList

A, B = "OASIS_0395", "OASIS_0396"


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


@pytest.mark.parametrize(
    "name",
    [
        f"{B}_to_{A}_ddf.nii.gz",
        f"{B}_to_{A}_displacement.nii.gz",
        f"{B}_to_{A}_transform.h5",
        f"{B}_to_{A}_map.pt",
        f"{B}_to_{A}.nii.gz",
        f"{B}_to_{A}_1Warp.nii.gz",
        "disp_0395_0396.nii.gz",
        "disp_0395_0396.npz",
        "disp_0395_0000_0396_0000.nii.gz",
        f"disp_{A}_{B}.nii",
    ],
)
@pytest.mark.parametrize("entries", [(A, B), (f"./imagesTr/{A}_0000.nii.gz", f"./imagesTr/{B}_0000.nii.gz")])
def test_every_usual_name_is_found(tmp_path: Path, name: str, entries: tuple[str, str]) -> None:
    # The opposite pair and the other outputs of a registration lie beside it.
    folder(tmp_path, name, f"{A}_to_{B}_ddf.nii.gz", "disp_0396_0395.npz", f"{B}_to_{A}_warped.nii.gz")
    found = find_field(Folder(tmp_path, "fields", FIELD_SUFFIXES), ListedPair(moving=entries[1], fixed=entries[0]))
    assert found is not None and found.name == name


def test_one_registration_in_several_forms_counts_once(tmp_path: Path) -> None:
    names = [f"b_to_a_{kind}" for kind in ("map.pt", "transform.h5", "displacement.nii.gz", "ddf.nii.gz", "inverse.h5")]
    found = find_field(Folder(folder(tmp_path, *names), "fields", FIELD_SUFFIXES), ListedPair("b", "a"))
    assert found is not None and found.name == "b_to_a_ddf.nii.gz"


def test_png_count_where_there_is_nothing_else(tmp_path: Path) -> None:
    pictures = Folder(folder(tmp_path / "pictures", "a.png", "b.png"), "images")
    both = Folder(folder(tmp_path / "both", "a.png", "a.nii.gz"), "images")
    found = pictures.find("a"), both.find("a")
    assert [path and path.name for path in found] == ["a.png", "a.nii.gz"]


def test_two_fields_of_one_form_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "disp_0395_0396.nii.gz", "disp_0395_0396.npz")
    with pytest.raises(InputError, match="Several files fit"):
        find_field(Folder(tmp_path, "fields", FIELD_SUFFIXES), ListedPair(B, A))


def test_column_and_pattern_count_before_the_usual_names(tmp_path: Path) -> None:
    folder(tmp_path, "disp_0395_0396.npz", "mine.npz", f"{A}-{B}.nii.gz", f"{A}-{B}.npz")
    files = Folder(tmp_path, "fields", FIELD_SUFFIXES)
    assert find_field(files, ListedPair(B, A, "mine.npz")) == tmp_path / "mine.npz"
    assert find_field(files, ListedPair(B, A, "absent.npz")) is None
    assert find_field(files, ListedPair(B, A), "{fixed}-{moving}.nii.gz") == tmp_path / f"{A}-{B}.nii.gz"
    assert find_field(files, ListedPair(A, B), "{fixed}-{moving}.nii.gz") is None
    with pytest.raises(InputError, match="must hold"):
        find_field(files, ListedPair(B, A), "{fixed}.nii.gz")


@pytest.mark.parametrize("entry", ["OASIS_0395_0000.nii.gz", "OASIS_0395", "0395", "./imagesTr/OASIS_0395_0000.nii.gz"])
def test_images_and_labels_are_found_by_any_form_of_the_name(tmp_path: Path, entry: str) -> None:
    folder(tmp_path, "imagesTr/OASIS_0395_0000.nii.gz", "imagesTr/OASIS_0396_0000.nii.gz")
    folder(tmp_path, "labels/OASIS_0395_seg.nii.gz", "labels/OASIS_0396_seg.nii.gz")
    image = Folder(tmp_path / "imagesTr", "images").find(entry)
    assert image is not None and image.name == "OASIS_0395_0000.nii.gz"
    label = Folder(tmp_path / "labels", "labels").find(entry, as_path=False)
    assert label is not None and label.name == "OASIS_0395_seg.nii.gz"


def test_ambiguous_numbers_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "A_0001_0000.nii.gz", "B_0001_0000.nii.gz")
    with pytest.raises(InputError, match="several files fit 0001"):
        Folder(tmp_path, "images").find("0001")


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Folder(tmp_path / "absent", "images")
    with pytest.raises(InputError, match="holds no file"):
        Folder(tmp_path, "images")


def test_what_is_missing_is_said_per_pair(tmp_path: Path) -> None:
    folder(tmp_path, "f/b_to_a_ddf.nii.gz", "i/a.nii.gz", "i/b.nii.gz", "l/a.nii.gz")
    listed = PairList((ListedPair("b", "a"), ListedPair("c", "b")))
    complete, missing = locate(listed, tmp_path / "f", tmp_path / "i", None)
    assert [pair.name for pair in complete] == ["b_to_a"] and missing == ["c to b (field, moving image)"]
    assert locate(listed, tmp_path / "f", None, tmp_path / "l")[1] == [
        "b to a (moving label)",
        "c to b (field, moving label, fixed label)",
    ]


def test_challenge_files_follow_the_rule_of_paths(tmp_path: Path) -> None:
    names = [f"{kind}Tr/L_0001_000{m}" for kind in ("images", "labels", "masks") for m in (0, 1)]
    folder(tmp_path, *[f"{name}.nii.gz" for name in names], "f/disp_0001_0000_0001_0001.nii.gz")
    folder(tmp_path, *[f"keypointsTr/L_0001_000{m}.csv" for m in (0, 1)])
    challenge = Challenge("L", (ChallengeMetric("TRE_kp", "tre", dest="keypoints"),), None, True, False)
    pair = ListedPair("./imagesTr/L_0001_0001.nii.gz", "./imagesTr/L_0001_0000.nii.gz")
    (found,), missing = locate(PairList((pair,), challenge), tmp_path / "f", tmp_path, tmp_path)
    assert not missing and found.name == "L_0001_0001_to_L_0001"
    assert found.fixed_mask == str(tmp_path / "masksTr/L_0001_0000.nii.gz")
    assert found.moving_label == str(tmp_path / "labelsTr/L_0001_0001.nii.gz")
    paths = (str(tmp_path / f"keypointsTr/L_0001_000{m}.csv") for m in (1, 0))
    assert found.landmarks == (LandmarkFiles("tre_keypoints", *paths),)

# SPDX-License-Identifier: Apache-2.0
"""What may be asked to be registered, and what else of the pair has to come with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.checks import InputError
from common.data import registration_request
from common.data.request import Request
from tests.dicom_slices import write_series

EVERY = [
    "moving",
    "fixed",
    *(f"{side}_{kind}" for kind in ("label", "mask", "landmarks") for side in ("moving", "fixed")),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name in EVERY:
        (tmp_path / f"{name}.nii.gz").touch()
    return {name: str(tmp_path / f"{name}.nii.gz") for name in EVERY}


def ask(files: dict[str, str], *names: str, guides: tuple[str, ...] = ()) -> Request:
    return registration_request("", **{name: files[name] for name in names}, guides=guides)


def test_each_file_belongs_to_its_image(files: dict[str, str]) -> None:
    request = ask(files, *EVERY, guides=("mask", "label", "landmarks"))
    assert request.pairs == [(0, 1)]
    for side, subject in zip(("moving", "fixed"), request.subjects, strict=True):
        assert subject.pop("landmark_coordinates") == "voxel"
        named = {"image": side, **{kind: f"{side}_{kind}" for kind in ("label", "mask", "landmarks")}}
        assert subject == {"id": side, **{kind: files[name] for kind, name in named.items()}}


def test_labels_and_a_mask_of_one_image_are_of_use(files: dict[str, str]) -> None:
    moving, fixed = ask(files, "moving", "fixed", "moving_label", "fixed_mask", guides=("mask",)).subjects
    assert "label" not in fixed and "mask" not in moving and {"id", "image", "mask"} == set(fixed)


@pytest.mark.parametrize(
    ("names", "guides", "message"),
    [
        (["fixed_label"], (), "A label map was given without its image"),
        (["moving_mask"], ("mask",), "A mask was given without its image"),
        (["moving", "fixed", "fixed_landmarks"], (), "--fixed_landmarks was given without --moving_landmarks"),
        (["moving", "fixed", "moving_label"], ("label",), "--moving_label was given without --fixed_label"),
        (["moving", "fixed"], ("label",), "a label map of each image, which neither has: give --moving_label and"),
        (["moving", "fixed"], ("landmarks",), "give --moving_landmarks and --fixed_landmarks"),
        (["moving", "fixed", "fixed_mask"], (), "--fixed_mask was given, but nothing looks at it.*--io_steps"),
    ],
)
def test_what_lacks_its_counterpart_or_a_use_is_refused(
    files: dict[str, str], names: list[str], guides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ask(files, *names, guides=guides)


def test_a_file_that_does_not_exist_is_named(files: dict[str, str]) -> None:
    Path(files["moving_mask"]).unlink()
    with pytest.raises(InputError, match=r"The moving mask .*moving_mask.nii.gz does not exist"):
        ask(files, "moving", "fixed", "moving_mask", guides=("mask",))


def test_listed_subjects_need_what_their_pairs_are_guided_by(phantom_list: Path) -> None:
    assert len(registration_request(phantom_list, section="training", guides=("label",)).pairs) == 2
    with pytest.raises(InputError, match=r"Pairs are to be guided by a list of landmarks .* 2 of 2"):
        registration_request(phantom_list, section="training", guides=("landmarks",))


@pytest.fixture
def phantom_list(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        for kind in ("image", "label", "mask"):
            (tmp_path / f"{name}_{kind}.nii.gz").touch()
    entries = [{kind: f"{name}_{kind}.nii.gz" for kind in ("image", "label", "mask")} for name in ("a", "b")]
    (tmp_path / "dataset.json").write_text(str({"training": entries}).replace("'", '"'))
    return tmp_path


def test_a_data_list_may_name_masks(phantom_list: Path) -> None:
    subjects = registration_request(phantom_list, section="training").subjects
    assert [Path(subject["mask"]).name for subject in subjects] == ["a_mask.nii.gz", "b_mask.nii.gz"]
    (phantom_list / "a_mask.nii.gz").unlink()
    with pytest.raises(InputError, match=r"do not exist, the first is .*a_mask.nii.gz"):
        registration_request(phantom_list, section="training")


def test_series_are_named_by_their_folders_and_their_paths_say_which_they_are(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    for folder, series in (("a/t1.x", "1.2.3"), ("b/t1.x", "1.2.4"), ("b/t1.x", "1.2.5")):
        write_series(tmp_path / folder, values, np.eye(4), series)
    one, both = str(tmp_path / "a/t1.x"), str(tmp_path / "b/t1.x")
    moving, fixed = registration_request("", moving=one, fixed=both, fixed_series="1.2.5").subjects
    assert moving == {"id": "t1.x", "image": f"{one}/1.2.3"} and fixed == {"id": "t1.x-1.2.5", "image": f"{both}/1.2.5"}
    moving, fixed = registration_request("", moving=f"{both}/1.2.4", fixed=f"{both}/1.2.5").subjects
    assert (moving["id"], fixed["id"]) == ("t1.x-1.2.4", "t1.x-1.2.5")
    (tmp_path / "b/t1.x" / "5_0000").unlink()
    for path in (tmp_path / "b/t1.x").glob("4_*"):
        path.unlink()
    with pytest.raises(InputError, match="a single slice"):
        registration_request("", moving=one, fixed=both)
    with pytest.raises(InputError, match="--moving_series was given without --moving"):
        registration_request("", moving_series="1.2.3")


def test_two_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    values = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    for name in ("a", "b"):
        write_series(tmp_path / name / "t1", values, np.eye(4))
    moving, fixed = registration_request("", moving=str(tmp_path / "a/t1"), fixed=str(tmp_path / "b/t1")).subjects
    assert (moving["id"], fixed["id"]) == ("a-t1", "b-t1")

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from common.checks import InputError
from common.data import LoadSubjectd
from common.data.challenge_pairs import CheckChallengeImaged, challenge_request

IMAGE = "imagesVal/LUMIRMRI_{:04d}_0000.nii.gz".format
SHAPE = (24, 28, 26)


def listed(fixed: int, moving: int) -> dict[str, str]:
    return {"fixed": f"./{IMAGE(fixed)}", "moving": f"./{IMAGE(moving)}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "imagesVal").mkdir()
    for number in (3454, 3455, 3456):
        (tmp_path / IMAGE(number)).touch()
    return tmp_path


def write_list(folder: Path, **content: Any) -> None:
    (folder / "LUMIR_dataset.json").write_text(json.dumps({"training": [], **content}))


def names(folder: Path, **options: Any) -> list[tuple[str, str]]:
    request = challenge_request(folder, "lumir", **options)
    return [(request.subjects[f]["id"][-4:], request.subjects[m]["id"][-4:]) for m, f in request.pairs]


def test_official_list_has_its_pairs_under_validation(folder: Path) -> None:
    write_list(folder, validation=[listed(3455, 3454), listed(3456, 3455)])
    assert names(folder) == [("3455", "3454"), ("3456", "3455")]


def test_edited_list_has_its_pairs_under_test(folder: Path) -> None:
    labelled = [{"image": IMAGE(n), "seg": f"SanityCheckLabelsTr/{n}.nii.gz"} for n in (3454, 3455)]
    write_list(folder, validation=labelled, test=[listed(3456, 3455)])
    assert names(folder) == [("3456", "3455")]
    with pytest.raises(InputError, match="no pairs .* under validation"):
        names(folder, section="validation")


def test_list_may_lie_outside_the_folder_of_images(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("list") / "LUMIR_dataset.json"
    elsewhere.write_text(json.dumps({"validation": [listed(3455, 3454)]}))
    assert names(folder, dataset_json=str(elsewhere)) == [("3455", "3454")]


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret/imagesVal/LUMIRMRI_3454_0000.nii.gz"])
def test_path_out_of_the_folder_is_refused(folder: Path, path: str) -> None:
    write_list(folder, validation=[{"fixed": path, "moving": IMAGE(3454)}])
    with pytest.raises(InputError, match="leaves the data folder"):
        names(folder)


def test_pair_of_a_missing_file_is_refused(folder: Path) -> None:
    write_list(folder, validation=[listed(3455, 3454), listed(3456, 9999)])
    with pytest.raises(InputError, match=r"1 image\(s\) of the listed pairs .*LUMIRMRI_9999_0000.nii.gz"):
        names(folder)


def test_missing_folder_and_unknown_reader_are_named(folder: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        challenge_request(folder / "nowhere", "lumir")
    with pytest.raises(InputError, match="reader 'lumire' is unknown"):
        challenge_request(folder, "lumire")


def test_pickles_of_oasis_are_their_own_list_and_come_without_labels(tmp_path: Path) -> None:
    with open(tmp_path / "p_0395_0396.pkl", "wb") as file:
        pickle.dump((np.zeros((2, 2, 2)),) * 4, file)
    request = challenge_request(tmp_path, "oasis")
    ((moving, fixed),) = request.pairs
    assert (request.subjects[fixed]["id"], request.subjects[moving]["id"]) == ("0395", "0396")
    assert not any("label" in subject for subject in request.subjects)


def brain(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    noise = gaussian_filter(np.random.default_rng(0).standard_normal(shape), 2)
    return ((noise - noise.min()) / np.ptp(noise) * 255).round().astype(np.uint8)


def regions(values: int) -> np.ndarray:
    """Blocks of 6 voxels with one value each."""
    blocks = np.random.default_rng(0).integers(0, values, (4, 5, 5))
    return zoom(blocks, 6, order=0)[: SHAPE[0], : SHAPE[1], : SHAPE[2]].astype(np.uint8)


def check(path: Path, values: np.ndarray, shape: Any = SHAPE) -> torch.Tensor:
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    image = LoadSubjectd("image")({"image": str(path)})
    return CheckChallengeImaged("image", shape)(image)["image"]


def test_images_of_the_challenge_pass(tmp_path: Path) -> None:
    assert check(tmp_path / "imagesVal" / "a.nii.gz", brain()).shape == (1, *SHAPE)
    assert check(tmp_path / "imagesVal" / "b.nii.gz", brain().astype(np.float32) / 255).shape == (1, *SHAPE)


@pytest.mark.parametrize("values", [2, 36, 200])
def test_label_map_is_no_image(tmp_path: Path, values: int) -> None:
    with pytest.raises(InputError, match="a.nii.gz is a label map by its folder or its values"):
        check(tmp_path / "imagesVal" / "a.nii.gz", regions(values))


@pytest.mark.parametrize("folder", ["labelsTr", "SanityCheckLabelsTr", "masksTr"])
def test_folder_of_labels_holds_no_images(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match="is a label map"):
        check(tmp_path / folder / "a.nii.gz", brain())


def test_other_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shape 24x28x20, but the challenge's images are 24x28x26"):
        check(tmp_path / "imagesVal" / "a.nii.gz", brain((24, 28, 20)))


def test_second_shape_is_taken_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(tmp_path / "imagesVal" / "a.nii.gz", brain((24, 26, 28)), [SHAPE, (24, 26, 28)])
    assert "not in the axis order" in caplog.text

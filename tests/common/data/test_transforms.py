# SPDX-License-Identifier: Apache-2.0
"""Loading, checking and grouping of one subject."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from common.checks import InputError
from common.data import CheckSubjectd, LoadSubjectd, MapLabelsd, prepare_abdomen, read_label_groups


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 3.0, 1.0]) if affine is None else affine), path)
    return str(path)


def load(path: str | Path, key: str = "image") -> torch.Tensor:
    return LoadSubjectd()({key: str(path)})[key]


def subject(image: np.ndarray, label: np.ndarray | None = None, scale: float = 1.0) -> dict[Any, Any]:
    meta = {"filename_or_obj": "brain.nii.gz"}
    loaded = {"image": MetaTensor(torch.as_tensor(image)[None], affine=torch.eye(4), meta=meta)}
    if label is not None:
        named = {"filename_or_obj": "seg.nii.gz"}
        loaded["label"] = MetaTensor(torch.as_tensor(label)[None], affine=scale * torch.eye(4), meta=named)
    return loaded


ARRAY = np.random.default_rng(0).random((4, 5, 6), np.float32)
LABELS = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5), (4, 5, 6, 1)])
def test_nifti_is_loaded_channel_first_with_its_affine(tmp_path: Path, suffix: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).random(shape, np.float32)
    image = load(save(tmp_path / f"a{suffix}", array))
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32
    np.testing.assert_array_equal(image.numpy(), array.reshape(1, *shape[:3]))
    # A slice of an image of two dimensions is one millimetre thick.
    thick = 1.0 if len(shape) == 2 else 3.0
    assert torch.allclose(image.affine, torch.diag(torch.tensor([2.0, 2.0, thick, 1.0], dtype=torch.float64)))


def test_the_scaling_of_the_header_counts(tmp_path: Path) -> None:
    nifti = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), np.eye(4))
    nifti.header.set_slope_inter(1 / 255, 0)
    nib.save(nifti, tmp_path / "a.nii.gz")
    assert load(tmp_path / "a.nii.gz").max().item() == pytest.approx(59 / 255)


@pytest.mark.parametrize(("top", "dtype"), [(119, torch.uint8), (2035, torch.int16)])
def test_labels_get_the_smallest_dtype(tmp_path: Path, top: int, dtype: torch.dtype) -> None:
    labels = np.where(LABELS == 119, top, LABELS).astype(np.float32)
    loaded = load(save(tmp_path / "seg.nii.gz", labels), "label")
    assert loaded.dtype == dtype and loaded.shape == (1, 4, 5, 6)
    np.testing.assert_array_equal(loaded.numpy()[0], labels)


def test_pickles_of_one_subject_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(pickle.dumps((ARRAY.astype(np.float64), LABELS)))
    loaded = LoadSubjectd()({"id": "0001", "image": str(path), "label": str(path)})
    np.testing.assert_array_equal(loaded["image"].numpy()[0], ARRAY)
    np.testing.assert_array_equal(loaded["label"].numpy()[0], LABELS)
    assert loaded["id"] == "0001" and torch.equal(loaded["image"].affine, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(("role", "image", "label"), [("moving", 0, 2), ("fixed", 1, 3)])
def test_pickles_of_a_pair_are_loaded_by_role(tmp_path: Path, role: str, image: int, label: int) -> None:
    arrays = (ARRAY, ARRAY + 1, LABELS, LABELS + 1)
    path = tmp_path / "p_0001_0002.pkl"
    path.write_bytes(pickle.dumps(arrays))
    loaded = LoadSubjectd()({"image": str(path), "label": str(path), "role": role})
    np.testing.assert_array_equal(loaded["image"].numpy()[0], arrays[image])
    np.testing.assert_array_equal(loaded["label"].numpy()[0], arrays[label])


def test_pickles_with_the_wrong_number_of_arrays_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p_0001.pkl"
    path.write_bytes(pickle.dumps((ARRAY,) * 4))
    with pytest.raises(InputError, match="p_0001.pkl holds 4 arrays"):
        load(path)
    path.write_bytes(pickle.dumps((ARRAY,)))
    with pytest.raises(InputError, match="p_0001.pkl holds no label map"):
        load(path, "label")


def test_files_that_are_no_single_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"series.nii.gz has shape \(4, 5, 6, 2\)"):
        load(save(tmp_path / "series.nii.gz", np.zeros((4, 5, 6, 2))))
    with pytest.raises(InputError, match="is a folder.*DICOM"):
        load(tmp_path)
    with pytest.raises(InputError, match="scan.mha is neither .nii nor .nii.gz: convert it"):
        (tmp_path / "scan.mha").write_text("ObjectType = Image")
        load(tmp_path / "scan.mha")
    with pytest.raises(InputError, match="absent.nii.gz does not exist"):
        load(tmp_path / "absent.nii.gz")


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_truncated_nifti_is_named(tmp_path: Path, keep: int) -> None:
    path = Path(save(tmp_path / "cut.nii.gz", np.random.default_rng(0).random((20, 20, 20))))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        InputError, match="cut.nii.gz (cannot be read as NIfTI|is damaged or cut short|is empty).*copy it anew"
    ):
        load(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.5, "no integers"), (np.nan, "no integers"), (np.inf, "no integers"), (1e30, "from 0 to 1")],
)
def test_label_maps_that_are_none_are_refused(tmp_path: Path, value: float, message: str) -> None:
    labels = np.zeros((4, 5, 6), np.float32)
    labels[1, 1, 1] = value
    with pytest.raises(InputError, match=f"seg.nii.gz has values .*{message}"):
        load(save(tmp_path / "seg.nii.gz", labels), "label")


def test_a_good_subject_passes_the_check() -> None:
    loaded = subject(ARRAY, LABELS % 4)
    checked = CheckSubjectd(labels=[1, 2, 3], spatial_dims=3)(loaded)
    assert checked["image"] is loaded["image"] and checked["label"] is loaded["label"]
    assert set(CheckSubjectd()(subject(ARRAY))) == {"image"}


@pytest.mark.parametrize(
    ("loaded", "message"),
    [
        (subject(np.where(ARRAY > 0.9, np.nan, ARRAY)), "brain.nii.gz has NaN or infinite"),
        (subject(np.where(ARRAY > 0.9, np.inf, ARRAY)), "brain.nii.gz has NaN or infinite"),
        (subject(np.full((4, 5, 6), 0.3)), "brain.nii.gz is constant"),
        (subject(ARRAY[0]), "brain.nii.gz has 2 spatial dimensions, but 3 are expected"),
        (subject(ARRAY, LABELS % 5), "seg.nii.gz has the value 4, which is not among the 4 known"),
        (
            subject(ARRAY, LABELS[:3] % 4),
            r"seg.nii.gz has shape \(3, 5, 6\), but its image brain.nii.gz has \(4, 5, 6\)",
        ),
        (
            subject(ARRAY, LABELS % 4, 1.1),
            "label map seg.nii.gz and its image brain.nii.gz lie up to 0.707 voxels apart",
        ),
    ],
)
def test_unusable_subjects_are_refused_by_name(loaded: dict[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CheckSubjectd(labels=[1, 2, 3], spatial_dims=3)(loaded)


@pytest.mark.parametrize("lookup", [[0, 7, 0, 300], {"0": 0, "1": 7, "2": 0, "3": 300}, {0: 0, 1: 7, 2: 0, 3: 300}])
def test_labels_are_mapped_to_groups(lookup: Any) -> None:
    labels = (LABELS % 4).astype(np.uint8)
    mapped = MapLabelsd(lookup=lookup)(subject(ARRAY, labels))["label"]
    np.testing.assert_array_equal(mapped.numpy()[0], np.array([0, 7, 0, 300])[labels])
    assert (
        isinstance(mapped, MetaTensor)
        and mapped.dtype == torch.int16
        and mapped.meta["filename_or_obj"] == "seg.nii.gz"
    )


def test_small_groups_are_uint8_and_no_lookup_changes_nothing() -> None:
    loaded = subject(ARRAY, (LABELS % 4).astype(np.int16))
    assert MapLabelsd(lookup=[0, 1, 1, 2])(loaded)["label"].dtype == torch.uint8
    assert MapLabelsd(lookup=None)(loaded)["label"] is loaded["label"]
    assert "label" not in MapLabelsd(lookup=[0, 1])(subject(ARRAY))


@pytest.mark.parametrize("lookup", [[0, 1, 2], {0: 0, 1: 1, 2: 2, 4: 4}])
def test_a_label_without_group_is_refused(lookup: Any) -> None:
    with pytest.raises(InputError, match="seg.nii.gz has the value 3, which has no group"):
        MapLabelsd(lookup=lookup)(subject(ARRAY, LABELS % 4))


@pytest.mark.parametrize("lookup", [[], {-1: -1}, [0, -2], [2**31]])
def test_an_impossible_lookup_is_refused(lookup: Any) -> None:
    with pytest.raises(InputError, match="lookup table has the entry"):
        MapLabelsd(lookup=lookup)


def test_label_groups_are_read(tmp_path: Path) -> None:
    path = tmp_path / "groups.json"
    path.write_text(json.dumps({"lookup_table": [0, 2, 1], "evaluation_groups": [1, 2], "comment": "any"}))
    groups = read_label_groups(path)
    assert groups.lookup == [0, 2, 1] and groups.evaluated == [1, 2]
    assert read_label_groups(None) == (None, None)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"lookup_table": [0]}', '{"lookup_table": ["a"], "evaluation_groups": []}']
)
def test_damaged_label_groups_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "groups.json"
    path.write_text(text)
    with pytest.raises(InputError, match="groups.json is not a JSON with the lists"):
        read_label_groups(path)
    with pytest.raises(InputError, match="absent.json does not exist"):
        read_label_groups(tmp_path / "absent.json")


def test_abdomen_preparation_windows_and_halves() -> None:
    hu = np.full((8, 6, 4), -1000.0)
    hu[4:] = 150
    image, labels = prepare_abdomen(hu, (hu > 0).astype(np.uint8))
    assert image.shape == (4, 3, 2) and image.dtype == np.float32 and labels is not None and labels.dtype == np.uint8
    assert image[0, 0, 0] == pytest.approx(0, abs=0.05) and image[-1, 0, 0] == pytest.approx(0.5, abs=0.05)
    assert set(np.unique(labels)) == {0, 1} and prepare_abdomen(hu)[1] is None

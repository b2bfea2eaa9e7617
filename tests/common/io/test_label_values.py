# SPDX-License-Identifier: Apache-2.0
"""Labels of any numbers, from file to file, without a change of one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import itk
import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from common.checks import InputError
from common.data import LoadSubjectd, MapLabelsd, PairDataset
from common.evaluation.pair_files import PairFiles
from common.evaluation.pair_lists import parse_labels
from common.evaluation.pair_measure import Measures, measure_pair
from common.io.apply import Chain, warp_file
from common.io.nifti import read_grid, read_labels, write_image
from common.metrics.overlap import dice_per_label
from common.metrics.surface import hd95_l2r
from common.spatial.labels import warp_labels

ALLEN = [0, 997, 312782545, 312782546, 614454277]
KINDS: list[tuple[list[int], Any]] = [
    (ALLEN, np.uint32), (ALLEN, np.int32), (ALLEN, np.float64), ([0, 20000, 40000, 60000], np.uint16),
    ([-1, 0, 1, 2], np.int16), ([-128, 0, 3, 127], np.int8), ([0, 5, 2**31 + 1, 2**32 - 1], np.uint32),
    ([-(2**40), 0, 1, 2**62 + 1], np.int64), ([-2000000, 0, 1, 16777215], np.float32), ([0, 1, 2**53], np.float64),
]  # fmt: skip
SHAPE = (12, 14, 10)


def maps(values: list[int], dtype: Any, seed: int = 0) -> np.ndarray:
    """Smooth regions, one for each value."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    ends = np.quantile(noise, np.arange(1, len(values)) / len(values))
    return np.array(values, dtype=dtype)[np.digitize(noise, ends)]


def save(path: Path, array: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2, 2, 1]), dtype=array.dtype), path)
    return str(path)


@pytest.mark.parametrize(("values", "dtype"), KINDS)
def test_every_number_is_read_and_written_exactly(tmp_path: Path, values: list[int], dtype: Any) -> None:
    array = maps(values, dtype)
    right = array.astype(np.int64)
    path = save(tmp_path / "a.nii.gz", array)
    labels, affine = read_labels(path)
    assert not labels.is_floating_point()
    np.testing.assert_array_equal(labels.numpy(), right)
    np.testing.assert_array_equal(LoadSubjectd()({"label": path})["label"].numpy()[0], right)
    write_image(tmp_path / "b.nii.gz", labels[None], affine)
    written: Any = nibabel.load(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), right)
    if written.get_data_dtype() != np.int64:  # ITK's Python has no such images.
        np.testing.assert_array_equal(itk.array_from_image(itk.imread(str(tmp_path / "b.nii.gz"))).T, right)
    warp_file(path, tmp_path / "c.nii.gz", Chain([], read_grid(path)), path, is_label=True)
    file: Any = nibabel.load(tmp_path / "c.nii.gz")
    np.testing.assert_array_equal(np.asarray(file.dataobj).astype(np.int64), right)
    assert np.dtype(dtype).kind == "f" or file.get_data_dtype() == dtype


def test_the_smallest_type_that_holds_all_is_taken(tmp_path: Path) -> None:
    for values, dtype in (
        ([0, 255], torch.uint8), ([-1, 255], torch.int16), ([0, 32768], torch.int32), ([0, 2**31], torch.int64),
    ):  # fmt: skip
        assert read_labels(save(tmp_path / "a.nii", maps(values, np.int64)))[0].dtype == dtype


@pytest.mark.parametrize("slope", [1.0, 2.0])
def test_the_scaling_of_a_header_counts(tmp_path: Path, slope: float) -> None:
    file = nibabel.Nifti1Image(maps([0, 1, 40000], np.uint16), np.eye(4))
    file.header.set_slope_inter(slope, -1)
    nibabel.save(file, tmp_path / "a.nii")
    assert read_labels(tmp_path / "a.nii")[0].unique().tolist() == [-1, slope - 1, 40000 * slope - 1]


def test_what_single_precision_has_rounded_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels, _ = read_labels(save(tmp_path / "a.nii", maps(ALLEN, np.float32)))
    assert labels.max() == 614454272 and "a.nii holds labels up to 614454272 in single precision" in caplog.text


@pytest.mark.parametrize("value", [2.0**70, -(2.0**70)])
def test_labels_beyond_64_bits_are_refused(tmp_path: Path, value: float) -> None:
    with pytest.raises(InputError, match=r"a\.nii has values from .*labels end at 9223372036854775807"):
        read_labels(save(tmp_path / "a.nii", maps([0, 1], np.float64) * value))


@pytest.mark.parametrize("field", [0.0, 1.3, -0.7])
@pytest.mark.parametrize(("values", "dtype"), KINDS[:7])
def test_the_evaluation_is_that_of_the_same_labels_numbered_anew(
    tmp_path: Path, values: list[int], dtype: Any, field: float
) -> None:
    names = {"moving_label": maps(values, dtype, 1), "fixed_label": maps(values, dtype, 2)}
    ddf = np.full((3, *SHAPE), field, np.float32)
    np.save(tmp_path / "ddf.npy", ddf)
    for name, array in names.items():
        save(tmp_path / f"{name}.nii", array)
    moving, fixed = (str(tmp_path / f"{name}.nii") for name in names)
    files = PairFiles("m", "f", str(tmp_path / "ddf.npy"), moving_label=moving, fixed_label=fixed)
    case = measure_pair(files, Measures(trust=True))
    codes = {name: np.searchsorted(values, array.astype(np.int64)) for name, array in names.items()}
    background = values.index(0)
    warped = map_coordinates(codes["moving_label"], np.indices(SHAPE) + ddf, order=0, cval=background)
    kept = [torch.from_numpy((array + 1) % 99)[None, None] for array in (warped, codes["fixed_label"])]
    counted = [code for code in range(len(values)) if code != background]
    hd95 = hd95_l2r(kept[0], kept[1], [code + 1 for code in counted])[0].tolist()
    assert list(case["dice_per_label"]) == [values[code] for code in counted]
    for code, distance in zip(counted, hd95, strict=True):
        one, other = warped == code, codes["fixed_label"] == code
        dice = 2 * (one & other).sum() / (one.sum() + other.sum())
        assert case["dice_per_label"][values[code]] == pytest.approx(dice)
        assert case["hd95_per_label"][values[code]] == pytest.approx(distance)


def test_folding_counts_in_labels_below_0_too(tmp_path: Path) -> None:
    array = maps([-3, 0, 1], np.int16)
    ddf = np.random.default_rng(0).normal(0, 0.8, (3, *SHAPE)).astype(np.float32)
    np.save(tmp_path / "ddf.npy", ddf)
    shares = []
    for name, content in (("a", array), ("b", np.abs(array))):
        path = save(tmp_path / f"{name}.nii", content)
        files = PairFiles("m", "f", str(tmp_path / "ddf.npy"), moving_label=path, fixed_label=path)
        shares.append(measure_pair(files, Measures(hd95=None, trust=True, foreground="fixed_label"))["ndv"])
    assert shares[0] == shares[1] > 0


def test_pairs_for_training_keep_the_numbers(tmp_path: Path) -> None:
    subjects = []
    for name, values in (("a", ALLEN), ("b", [0, 1, 2]), ("c", [-7, 0, 40000])):
        image = save(tmp_path / f"{name}.nii", np.random.default_rng(0).random(SHAPE).astype(np.float32))
        label = save(tmp_path / f"{name}_label.nii", maps(values, np.int64))
        subjects.append({"id": name, "image": image, "label": label})
    pairs = PairDataset(subjects, LoadSubjectd(), progress=False)
    assert pairs[0, 1]["moving_label"].unique().tolist() == ALLEN
    assert pairs[0, 2]["fixed_label"].unique().tolist() == [-7, 0, 40000]
    assert {pairs[i, j][f"{side}_label"].dtype for i, j in ((0, 1), (2, 1)) for side in ("moving", "fixed")} == {
        torch.int32
    }


def test_groups_of_large_and_negative_labels() -> None:
    label = torch.tensor([[0, 997, 312782546], [614454277, -1, 997]], dtype=torch.int32)
    group = MapLabelsd(lookup={0: 0, 997: 70000, 312782546: 2, 614454277: 3, -1: 4})
    mapped = group({"label": label})["label"]
    assert mapped.tolist() == [[0, 70000, 2], [3, 4, 70000]] and mapped.dtype == torch.int32
    with pytest.raises(InputError, match="value 312782545, which has no group"):
        group({"label": label - (label == 312782546).int()})


def test_labels_are_warped_and_compared_exactly_where_single_precision_is_not() -> None:
    # 312782545 and 312782546 are one number in float32.
    label = torch.tensor([312782545, 312782546, 0, 312782545], dtype=torch.int32).view(1, 1, 2, 2)
    warped = warp_labels(label, torch.zeros(1, 2, 2, 2))
    assert torch.equal(warped, label) and warped.dtype == torch.int32
    dice = dice_per_label(warped, label.flip(3), [312782545, 312782546, -5])
    assert dice.tolist()[0][:2] == [0.0, 0.0] and dice[0, 2].isnan()


def test_label_values_of_an_option() -> None:
    assert parse_labels("1-3,614454277,-1") == (1, 2, 3, 614454277, -1)
    assert parse_labels("-3--1") == (-3, -2, -1) and parse_labels([-1, 997]) == (-1, 997)
    with pytest.raises(InputError, match="more than 100000"):
        parse_labels("0-614454277")

# SPDX-License-Identifier: Apache-2.0
"""Labels that count, and their numbers as classes."""

from __future__ import annotations

import logging
import re
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from common.checks import InputError
from common.data import CheckSubjectd, ClassesOfLabelsd, PairDataset, labels_that_count
from common.data.counted_labels import PRESENT
from common.losses import ImagePyramid, RegistrationLoss, Term, WarpedDiceLoss

WIDE = (torch.int32, torch.int64, torch.float64)


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        *product(([1, 2, 3, 4], [2, 41, 1035, 2035], [0, 9, 8]), (torch.int16, *WIDE)),
        *product(([4, -3, 614454277, 7],), WIDE),
    ],
)
def test_labels_become_consecutive_classes_and_all_else_background(labels: list[int], dtype: torch.dtype) -> None:
    rng = np.random.default_rng(0)
    values = rng.choice([*labels, 0, 5, -1, 12], (1, 6, 7, 8))
    expected = np.zeros(values.shape, int)
    for number, label in enumerate(sorted(set(labels) - {0}), start=1):
        expected[values == label] = number
    label_map = MetaTensor(torch.from_numpy(values).to(dtype), meta={"filename_or_obj": "seg.nii.gz"})
    classes = ClassesOfLabelsd(labels)({"label": label_map, "image": 3})["label"]
    np.testing.assert_array_equal(classes.numpy(), expected)
    assert classes.dtype == torch.uint8 and classes.meta["filename_or_obj"] == "seg.nii.gz"


def test_more_than_255_classes_fit() -> None:
    labels = list(range(10, 3010, 10))
    classes = ClassesOfLabelsd(labels)({"label": torch.tensor([[labels]])})["label"]
    assert classes.dtype == torch.int16 and classes.flatten().tolist() == list(range(1, 301))
    assert ClassesOfLabelsd([1])({"image": 0}) == {"image": 0}


@pytest.mark.parametrize("levels", [1, 2])
def test_the_loss_of_labels_with_gaps_is_that_of_consecutive_ones(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    consecutive = [torch.randint(0, 5, (1, 1, 12, 12, 12), generator=generator) for _ in range(2)]
    numbers = torch.tensor([0, 2, 41, 1035, 614454277])
    field = 2 * torch.randn(1, 3, 12, 12, 12, generator=generator)

    def loss(maps: list[torch.Tensor], labels: list[int]) -> float:
        moving, fixed = (ClassesOfLabelsd(labels)({"label": label})["label"] for label in maps)
        count = len(labels) + 1
        term = Term(WarpedDiceLoss(count), ["moving_label", "fixed_label", "ddf"])
        made = RegistrationLoss({"dice": term}, [1.0] * levels, ImagePyramid(num_classes=count))
        pyramid = [field, field[..., ::2, ::2, ::2] / 2][:levels]
        return float(made({"ddf": field, "pyramid": pyramid}, {"moving_label": moving, "fixed_label": fixed}))

    gaps = [numbers[label] for label in consecutive]
    assert loss(gaps, numbers[1:].tolist()) == loss(consecutive, [1, 2, 3, 4])
    # Labels that are not named are background: the same as if the maps had none of them.
    kept = [torch.where((label == 1) | (label == 4), label, 0) for label in consecutive]
    assert loss(consecutive, [1, 4]) == loss(kept, [1, 4]) != loss(consecutive, [1, 2, 3, 4])


@pytest.mark.parametrize("named", [[1, 4], (2, -5), range(1, 3), [614454277]])
def test_labels_that_are_named_count(named: Any) -> None:
    assert labels_that_count(named, [7]) == list(named) and labels_that_count(None, range(2, 4)) == [2, 3]


@pytest.mark.parametrize("named", [4, "1,2", [1.5], ["1"], [True, 2], [1, 1], [], [0], {1: 2}, 0])
def test_labels_that_cannot_be_meant_are_refused(named: Any) -> None:
    with pytest.raises(InputError, match="--labels is"):
        labels_that_count(named, [7])


def subjects(*maps: list[int]) -> list[dict[str, Any]]:
    """Subjects whose label maps are these values in a row."""
    made = []
    for number, values in enumerate(maps):
        label = MetaTensor(torch.tensor(values)[None, None], meta={"filename_or_obj": f"seg{number}.nii.gz"})
        made.append({"id": f"s{number}", "image": MetaTensor(torch.rand(label.shape)), "label": label})
    return made


def dataset(*maps: list[int], counted: list[int] | None = None, **options: Any) -> PairDataset:
    steps = Compose([CheckSubjectd(counted=counted), ClassesOfLabelsd(counted or [1])])
    return PairDataset(subjects(*maps), Compose([steps]), progress=False, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0, 0, 0], "seg1.nii.gz is background .0. everywhere."),
        ([3, 3, 3, 3], "seg1.nii.gz is the label 3 in every voxel, without background."),
        ([0, 7, 7, 9], r"seg1.nii.gz has none of the labels that count .1, 3., but 7, 9."),
    ],
)
def test_a_label_map_that_says_nothing_is_named(
    values: list[int], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = dataset([0, 1, 3, 1], values, counted=[1, 3])
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    assert re.search(message, caplog.text)
    assert pairs[0, 1]["fixed_label"].tolist() == [[[2, 2, 2, 2] if 3 in values else [0, 0, 0, 0]]]


def test_label_maps_of_which_none_has_a_label_that_counts_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"None of the 2 label maps has a label that counts \(1, 2\): name with --labels"
    ):
        dataset([0, 41, 0, 2035], [0, 0, 0, 0], counted=[1, 2])
    # Where they are not read yet, it is not known.
    assert len(dataset([0, 41, 0, 2035], [0, 0, 0, 0], counted=[1, 2], cache_rate=0.0)) == 2


def test_labels_that_occur_nowhere_are_said(caplog: pytest.LogCaptureFixture) -> None:
    dataset([0, 1, 4, 1], [0, 1, 0, 0], counted=[0, 1, 2, 3, 4])
    assert "2 of the 4 labels that count are in none of the 2 label maps: 2, 3; --labels" in caplog.text
    caplog.clear()
    dataset([0, 1, 4, 1], [0, 1, 0, 0], counted=[1, 4])
    assert not caplog.text


def test_what_is_checked_stays_as_it_is() -> None:
    (subject,) = subjects([0, 1, -4, 614454277])
    checked = CheckSubjectd(counted=[1, 2])(subject)
    assert checked["label"] is subject["label"] and checked[PRESENT] == {1: True, 2: False}
    assert PRESENT not in CheckSubjectd()(subject)


def test_nested_steps_are_done_once_per_subject() -> None:
    steps = Compose([Compose([ClassesOfLabelsd([1])])])
    pairs = PairDataset(subjects([0, 1], [1, 0]), steps, progress=False)
    assert pairs.subjects[0]["label"] is pairs.subjects[0]["label"]

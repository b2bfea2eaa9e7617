# SPDX-License-Identifier: Apache-2.0
"""Dice against sets of voxels, and the rules about missing labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import common.metrics.overlap as overlap_module
from common.checks import InputError
from common.metrics import dice_l2r, dice_per_label, dice_voi, hd95_l2r, labels_present, mean_over_labels


def slow_dice(fixed: torch.Tensor, warped: torch.Tensor, label: int) -> float:
    one, other = (set(map(tuple, np.argwhere(m.numpy() == label).tolist())) for m in (fixed, warped))
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else 0.0


def maps(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 7, (2, 1, *shape), generator=generator).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("shape", [(8, 9), (5, 6, 7)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_dice_equals_the_count_of_voxel_sets(
    shape: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap_module, "_CHUNK", 37)
    fixed, warped = maps(shape, dtype)
    labels = [5, 0, 3]
    expected = [[slow_dice(f[0], w[0], label) for label in labels] for f, w in zip(fixed, warped, strict=True)]
    dice = dice_l2r(warped, fixed, labels, warped)
    assert dice.dtype == torch.float64
    np.testing.assert_allclose(dice.numpy(), expected, rtol=1e-15)


def test_identical_maps_have_dice_one() -> None:
    fixed, _ = maps((6, 6, 6))
    assert torch.equal(dice_l2r(fixed, fixed, list(range(7)), fixed), torch.ones(2, 7, dtype=torch.float64))


def test_missing_labels_are_skipped_and_a_lost_one_is_zero() -> None:
    fixed = torch.tensor([[[[1, 2, 0, 4]]]])
    moving = torch.tensor([[[[1, 0, 3, 4]]]])
    warped = torch.tensor([[[[1, 0, 3, 0]]]])
    dice = dice_l2r(warped, fixed, [1, 2, 3, 4, 5], moving)[0].tolist()
    assert dice[0] == 1 and dice[3] == 0 and all(math.isnan(dice[k]) for k in (1, 2, 4))
    assert mean_over_labels(dice_l2r(warped, fixed, [1, 2, 3, 4, 5], moving)).tolist() == [0.5]


def test_missing_labels_count_as_zero_in_the_voi_form() -> None:
    fixed = torch.tensor([[[[1, 1, 2, 0]]]])
    assert dice_voi(fixed, fixed, [1, 2, 9])[0].tolist() == pytest.approx([4 / 4.00001, 2 / 2.00001, 0], abs=1e-12)
    assert dice_per_label(fixed, fixed, [9], absent="zero").tolist() == [[0.0]]


def test_presence_is_told_per_map() -> None:
    label = torch.tensor([[[[0, 1]]], [[[2, 2]]]], dtype=torch.uint8)
    assert labels_present(label, [0, 1, 2, 300]).tolist() == [[True, True, False, False], [False, False, True, False]]


def test_moving_labels_may_lie_on_another_grid() -> None:
    fixed, warped = maps((4, 5, 6))
    moving = torch.ones(2, 1, 3, 3, 3, dtype=torch.uint8)
    assert torch.isfinite(dice_l2r(warped, fixed, [1, 2], moving)).tolist() == [[True, False]] * 2


@pytest.mark.parametrize("offset", [600_000_000, 2**33])
def test_large_identifiers_are_labels_like_others_and_take_no_memory(offset: int) -> None:
    fixed, warped = maps((4, 5, 6), torch.int64)
    labels = [5, 0, 3]
    far = [offset + label for label in labels]
    expected = dice_l2r(warped, fixed, labels, warped)
    assert expected.isfinite().all()
    torch.testing.assert_close(
        dice_l2r(warped + offset, fixed + offset, far, warped + offset), expected, rtol=0, atol=0
    )
    torch.testing.assert_close(hd95_l2r(warped + offset, fixed + offset, far), hd95_l2r(warped, fixed, labels))
    # Labels that no map holds.
    assert dice_l2r(warped, fixed, far, warped).isnan().all()


def test_bad_input_is_refused_in_words() -> None:
    fixed, warped = maps((4, 5, 6))
    with pytest.raises(InputError, match="integer dtype"):
        dice_l2r(warped, fixed.float(), [1])
    with pytest.raises(InputError, match="on one grid"):
        dice_l2r(warped[..., :-1], fixed, [1])
    with pytest.raises(InputError, match="distinct values"):
        dice_l2r(warped, fixed, [1, 1])
    with pytest.raises(InputError, match="distinct values"):
        dice_l2r(warped, fixed, [])
    with pytest.raises(InputError, match="absent is 'nan'"):
        dice_per_label(warped, fixed, [1], absent="nan")

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from scripts import lesion

SPACING = (2.0, 2.0, 1.0)


@pytest.fixture
def brain() -> Tensor:
    image = torch.zeros(24, 20, 40)
    image[2:22, 2:18, 4:36] = 1
    return image


@pytest.fixture
def scan(brain: Tensor) -> dict[str, Any]:
    """A brain of four structures, two in each half."""
    affine = torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64))
    label = (brain * (1 + (torch.arange(24) >= 12)[:, None, None] + 2 * (torch.arange(40) >= 20))).to(torch.uint8)
    return {"id": "a", "image": MetaTensor(brain[None], affine=affine), "label": MetaTensor(label[None], affine=affine)}


def test_lesion_is_a_fifth_of_one_half(brain: Tensor) -> None:
    ball = lesion.lesion_in(brain, SPACING)
    # Half of the box is 10 x 16 x 32 voxels; those of equal distance are in or out together.
    assert int((ball & (brain > 0))[:12].sum()) == pytest.approx(0.2 * 10 * 16 * 32, rel=0.02)
    assert not ball[12:].any() and ball[6, 9, 19] and ball[6, 10, 20]


def test_beside_is_within_ten_millimetres_and_not_inside(brain: Tensor) -> None:
    ball = torch.zeros_like(brain, dtype=torch.bool)
    ball[10, 10, 10] = True
    shell = lesion.beside(ball, SPACING)
    assert not shell[10, 10, 10] and shell[15, 10, 10] and not shell[16, 10, 10]
    assert shell[10, 10, 20] and not shell[10, 10, 21]


def test_structures_count_where_a_tenth_of_them_is_near() -> None:
    label = torch.tensor([1] * 10 + [2] * 20 + [3] * 5)
    shell = torch.zeros(35, dtype=torch.bool)
    shell[[9, 10]] = True
    assert lesion.neighbours(label, shell, [1, 2, 3, 4]) == [1]


def test_field_that_a_lesion_pulls_is_told_from_one_that_a_mask_holds(
    scan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def inferer(pair: Tensor, network: object, targets: dict[str, Tensor]) -> dict[str, Tensor]:
        ball = pair[0, 1] != scan["image"].as_tensor()[0]
        if "fixed_mask" in targets:
            assert torch.equal(targets["fixed_mask"][0, 0] == 0, ball) and ball.any()
        pulled = 3.0 * (bool(ball.any()) and "fixed_mask" not in targets)
        return {"ddf": torch.full((1, 3, *pair.shape[2:]), pulled)}

    monkeypatch.setattr(lesion, "optimiser", lambda: (inferer, None))
    row = lesion.measure(scan, scan, [1, 2, 3, 4])
    assert row["no lesion_dice"] == row["lesion and mask_dice"] == 1 and row["lesion_dice"] < 0.9
    assert row["lesion_shift_mm"] == pytest.approx(9) and row["lesion and mask_shift_mm"] == 0
    assert "| lesion | 0." in lesion.summary([row]) and "| 9.00 |" in lesion.summary([row])

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from common.engine.registration_figures import guided_by, landmark_errors, sentence
from common.spatial import Grid, displacement_to_moving


@pytest.mark.parametrize("flat", [False, True])
def test_landmarks_are_followed_from_scan_to_scan(flat: bool) -> None:
    fixed = Grid((8, 9, 1 if flat else 7), torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0])), flat)
    moving = Grid((9, 8, 1 if flat else 9), torch.diag(torch.tensor([1.5, 2.0, 2.0, 1.0])), flat)
    points = torch.tensor([[3.0, 4, 0], [1.5, 2.25, 0], [6, 7, 0]])[:, : fixed.dims]
    # Of the moving scan a millimetre further along the first axis and two along the second.
    shift = torch.tensor([1.0, 2, 0])[: fixed.dims]
    sizes = [torch.tensor(grid.spacing[: grid.dims]) for grid in (fixed, moving)]
    pair = {"fixed_scan_landmarks": points.double(), "moving_scan_landmarks": (points * sizes[0] + shift) / sizes[1]}
    field = torch.zeros(1, 3, *fixed.shape)
    field[:, :2] = torch.tensor([0.5, 1.0]).view(1, 2, 1, 1, 1)
    stages = {
        "header": displacement_to_moving(moving, fixed),
        "registered": displacement_to_moving(moving, fixed, field),
    }
    found = landmark_errors(pair, lambda: stages, moving)
    assert found["landmarks"] == 3
    assert found["landmark_distance_mm"] == {
        # Figures are rounded as they are recorded.
        "header": pytest.approx(math.sqrt(5), abs=1e-5), "registered": pytest.approx(1.0, abs=1e-5),
    }  # fmt: skip


def test_without_landmarks_of_both_nothing_is_measured() -> None:
    def stages() -> dict[str, torch.Tensor]:
        raise AssertionError("a field was made for nothing")

    assert landmark_errors({"fixed_scan_landmarks": torch.zeros(1, 3)}, stages, Grid((2, 2, 2), torch.eye(4))) == {}


def test_the_record_says_what_a_pair_was_guided_by() -> None:
    assert guided_by({"fixed_mask": 0, "moving_label": 0, "moving_scan_label": 0}) == {
        "guided_by": ["fixed_mask", "moving_label"]
    }
    assert guided_by({"fixed_scan_label": 0}) == {}


def test_the_line_has_each_stage() -> None:
    entry = {
        "folded_percent": 0.01, "largest_displacement_voxels": 3.5,
        "landmark_distance_mm": {"header": 5.0, "registered": 1.234}, "dice": {"header": 0.5, "registered": 0.75},
    }  # fmt: skip
    line = "landmarks (mm) header 5.00, registered 1.23, Dice header 0.5000, registered 0.7500"
    assert sentence(entry).endswith(line)

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from common.checks import InputError
from common.metrics import hd95_l2r, inverse_consistency_error, tre_l2r
from common.metrics.voxel_sizes import voxel_sizes


def _distance(spacing: Sequence[float]) -> object:
    label = torch.ones(1, 1, 4, 4, 4, dtype=torch.uint8)
    return hd95_l2r(label, label, [1], spacing=spacing)


def _landmarks(spacing: Sequence[float]) -> object:
    return tre_l2r(None, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), spacing)


def _consistency(spacing: Sequence[float]) -> object:
    return inverse_consistency_error(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 4, 4, 4), spacing)


def test_sizes_are_one_unless_given() -> None:
    assert voxel_sizes(None, 2) == (1.0, 1.0)
    assert voxel_sizes(torch.tensor([1.5, 2.0, 3.0]).tolist(), 3) == (1.5, 2.0, 3.0)


@pytest.mark.parametrize("metric", [_distance, _landmarks, _consistency])
@pytest.mark.parametrize(
    "spacing", [(1, 1), (1, 0, 1), (1, 1, -2), (math.nan, 1, 1), (1, math.nan, 1), (1, 1, math.inf)]
)
def test_what_is_no_voxel_size_is_refused_by_every_metric(
    metric: Callable[[Sequence[float]], object], spacing: Sequence[float]
) -> None:
    with pytest.raises(InputError, match="it must be 3 positive voxel sizes, one per array axis"):
        metric(spacing)

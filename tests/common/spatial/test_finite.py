# SPDX-License-Identifier: Apache-2.0
"""What is not finite is found wherever it is."""

from __future__ import annotations

import pytest
import torch

from common.spatial.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_large_values_are_finite(dtype: torch.dtype) -> None:
    assert all_finite(torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_one_value_is_enough(wrong: float, place: int) -> None:
    values = torch.arange(12.0)
    values[place] = wrong
    assert not all_finite(values.view(3, 4))


def test_nothing_is_finite() -> None:
    assert all_finite(torch.zeros(0, 3))

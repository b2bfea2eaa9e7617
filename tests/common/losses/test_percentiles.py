# SPDX-License-Identifier: Apache-2.0
"""Percentiles, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from common.losses.percentiles import percentiles

SHARES = (0.0, 0.01, 0.5, 0.987, 1.0)


def drawn(kind: str) -> Tensor:
    values = torch.randn(3001, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if kind == "background":
        return values.clamp(min=0)
    if kind == "outlier":
        # All others are in one cell.
        values[17] = 1e9
    return values.round() if kind == "whole numbers" else values


@pytest.mark.parametrize("kind", ["normal", "background", "outlier", "whole numbers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_percentiles_are_exact(kind: str, dtype: torch.dtype) -> None:
    values = drawn(kind).to(dtype)
    expected = np.percentile(values.double().numpy(), [100 * share for share in SHARES])
    found = [float(value) for value in percentiles(values, SHARES)]
    # Two values of that type are interpolated.
    assert found == pytest.approx(expected, rel=torch.finfo(dtype).eps, abs=torch.finfo(dtype).eps)


def test_one_value_is_every_percentile() -> None:
    for values in (torch.full((5,), 3.0), torch.tensor([3.0])):
        assert [float(value) for value in percentiles(values, SHARES)] == [3] * len(SHARES)


def test_values_without_a_finite_range_are_ordered_as_well() -> None:
    values = torch.tensor([2.0, torch.inf, 0.0, 1.0, 3.0, -3e38])
    assert [float(value) for value in percentiles(values, (0.2, 0.6))] == [0, 2]
    values[0] = torch.nan
    assert float(percentiles(values, (0.2,))[0]) == 0

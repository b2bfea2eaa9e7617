# SPDX-License-Identifier: Apache-2.0
"""Lengths of vectors are those of the textbook."""

from __future__ import annotations

import pytest
import torch

from common.spatial.lengths import lengths


@pytest.mark.parametrize("shape", [(2, 2, 5, 4), (2, 3, 4, 3, 5)])
def test_is_the_norm_of_each_vector(shape: tuple[int, ...]) -> None:
    field = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kept = field.clone()
    expected = torch.linalg.vector_norm(field, dim=1, keepdim=True)
    torch.testing.assert_close(lengths(field), expected)
    assert torch.equal(field, kept)

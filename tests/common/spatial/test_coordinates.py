# SPDX-License-Identifier: Apache-2.0
"""Voxel coordinates, and what counts as a displacement field."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common.spatial import identity_grid
from common.spatial.coordinates import check_ddf, sampling_grid


@pytest.mark.parametrize("shape", [(4, 7), (2, 5, 3), (1, 4, 6)])
def test_channel_k_holds_the_index_along_axis_k(shape: tuple[int, ...]) -> None:
    np.testing.assert_array_equal(identity_grid(shape)[0].numpy(), np.indices(shape))


def test_identity_grid_has_the_dtype_that_was_asked_for() -> None:
    assert identity_grid((2, 3)).dtype == torch.float32
    assert identity_grid((2, 3), dtype=torch.float64).dtype == torch.float64


def test_writing_into_a_grid_does_not_change_the_next_one() -> None:
    identity_grid((3, 4)).add_(1)
    assert identity_grid((3, 4))[0, 0, 0, 0] == 0


@pytest.mark.parametrize("shape", [(4, 7), (2, 5, 3)])
def test_sampling_grid_of_zero_displacement_spans_minus_one_to_one_in_reversed_order(shape: tuple[int, ...]) -> None:
    grid = sampling_grid(torch.zeros(2, len(shape), *shape), shape)
    expected = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")[::-1], axis=-1)
    for sample in grid:
        np.testing.assert_allclose(sample.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (1, 2, 4, 5, 6), (1, 1, 4), (2, 4, 5), (1, 4, 2, 2, 2, 2)])
def test_a_tensor_without_one_channel_per_axis_is_no_field(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 2, H, W\) or \(B, 3, D, H, W\)"):
        check_ddf(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (1, 1, 4, 5, 6), (1, 4, 5)])
def test_an_image_of_another_batch_size_or_dimension_does_not_belong_to_the_field(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ in batch size or dimension"):
        check_ddf(torch.zeros(1, 2, 4, 5), torch.zeros(shape))

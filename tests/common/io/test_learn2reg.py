# SPDX-License-Identifier: Apache-2.0
"""Half-resolution fields: values, end points and the published quirk."""

from __future__ import annotations

import numpy as np
import pytest

from common.checks import InputError
from common.io.learn2reg import from_half_resolution, to_half_resolution


def linear_field(shape: tuple[int, ...]) -> np.ndarray:
    axes = np.meshgrid(*[np.linspace(-2, 3, n) for n in shape], indexing="ij")
    return np.stack([axis + k for k, axis in enumerate(axes)]).astype(np.float32)


@pytest.mark.parametrize("shape", [(10, 12), (10, 12, 16)])
def test_half_size_keeps_the_values_and_maps_end_points_to_end_points(shape: tuple[int, ...]) -> None:
    field = linear_field(shape)
    half = to_half_resolution(field)
    assert half.dtype == np.float16 and half.shape[1:] == tuple(n // 2 for n in shape)
    first, last = (0,) * len(shape), (-1,) * len(shape)
    for channel in range(len(shape)):
        assert half[(channel, *first)] == pytest.approx(-2 + channel, abs=1e-3)
        assert half[(channel, *last)] == pytest.approx(3 + channel, abs=1e-3)


def test_a_linear_field_survives_the_round_trip() -> None:
    field = linear_field((10, 12, 16))
    restored = from_half_resolution(to_half_resolution(field))
    assert restored.dtype == np.float32 and restored.shape == field.shape
    # Spline extrapolation bends the outermost voxels.
    np.testing.assert_allclose(restored[:, 3:-3, 3:-3, 3:-3], field[:, 3:-3, 3:-3, 3:-3], atol=0.05)


def test_the_published_mode_loses_the_last_plane_of_some_lengths_and_ours_does_not() -> None:
    field = np.ones((2, 32, 16), np.float32)
    assert not to_half_resolution(field, mode="constant")[:, -1].any()
    assert (to_half_resolution(field) == 1).all()


def test_channel_last_fields_are_refused() -> None:
    with pytest.raises(InputError, match="channel first"):
        to_half_resolution(np.zeros((8, 8, 8, 3), np.float32))
    with pytest.raises(InputError, match="channel first"):
        from_half_resolution(np.zeros((2, 8, 8, 8), np.float32))


def test_a_single_slice_has_no_half() -> None:
    with pytest.raises(InputError, match="needs 2 voxels along each axis"):
        to_half_resolution(np.zeros((3, 8, 8, 1), np.float32))

# SPDX-License-Identifier: Apache-2.0
"""Free-form fields against a transposed convolution and SciPy's splines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import BSpline

from common.spatial.free_form import free_form_field, lattice_size


@pytest.mark.parametrize("spacing", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10])
def test_lattice_reaches_beyond_the_last_voxel_and_no_further(n: int, spacing: int) -> None:
    (points,) = lattice_size([n], spacing)
    assert points == -(-(n - 1) // spacing) + 3
    control = torch.randn(1, 2, points, points, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    field = free_form_field(control, (n, n), spacing)
    cubic = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)
    places = (np.arange(n)[:, None] + spacing - spacing * np.arange(points)) / spacing
    weights = torch.from_numpy(np.nan_to_num(cubic(places)))
    torch.testing.assert_close(field, torch.einsum("xm,yn,bcmn->bcxy", weights, weights, control))


@pytest.mark.parametrize(("size", "spacing"), [((7, 10, 4), 3), ((8, 5, 6), 2)])
def test_field_is_the_published_transposed_convolution(size: tuple[int, ...], spacing: int) -> None:
    control = torch.randn(2, 3, *lattice_size(size, spacing), generator=torch.Generator().manual_seed(0))
    t = torch.arange(1 - 2 * spacing, 2 * spacing).abs() / spacing
    kernel = torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6)
    expected = control.flatten(0, 1)[:, None]
    for axis in range(3):
        shape, ones = [1, 1, 1], [1, 1, 1]
        shape[axis], stride, padding = len(kernel), [*ones], [0, 0, 0]
        stride[axis], padding[axis] = spacing, 2 * spacing - 1
        expected = F.conv_transpose3d(expected, kernel.view(1, 1, *shape), stride=stride, padding=padding)
        expected = expected.narrow(axis + 2, spacing, size[axis])
    torch.testing.assert_close(free_form_field(control, size, spacing), expected.view(2, 3, *size))


def test_constant_and_slope_are_kept_at_the_border_too() -> None:
    slope = torch.arange(6.0).view(1, 1, 6, 1).expand(1, 2, 6, 6)
    field = free_form_field(slope, (8, 8), 3)
    torch.testing.assert_close(field, (torch.arange(8.0) / 3 + 1).view(1, 1, 8, 1).expand(1, 2, 8, 8))
    assert free_form_field(slope.half(), (8, 8), 3).dtype == torch.float32

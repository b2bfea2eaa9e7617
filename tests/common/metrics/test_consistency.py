# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from scipy.ndimage import map_coordinates

from common.checks import InputError
from common.metrics import inverse_consistency_error
from common.spatial import identity_grid, integrate


@pytest.mark.parametrize("shape", [(9, 8), (7, 8, 6)])
def test_error_is_that_of_a_composition_by_scipy(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    forward, backward = torch.randn(2, 2, len(shape), *shape, generator=generator, dtype=torch.float64)
    spacing = [2.0, 0.5, 1.0][: len(shape)]
    errors = inverse_consistency_error(forward, backward, spacing)
    for b in range(2):
        u, v = forward[b].numpy(), backward[b].numpy()
        where = identity_grid(shape, dtype=torch.float64)[0].numpy() + u
        back = [map_coordinates(c, where, order=1, mode="nearest") for c in v]
        gap = sum(((u[k] + back[k]) * spacing[k]) ** 2 for k in range(len(shape))) ** 0.5
        assert errors.mean[b].item() == pytest.approx(gap.mean())
        assert errors.maximum[b].item() == pytest.approx(gap.max())


def test_a_shift_and_its_opposite_are_consistent_and_twice_the_shift_is_not() -> None:
    forward = torch.full((1, 3, 6, 6, 6), 0.25)
    exact, wrong = inverse_consistency_error(forward, -forward), inverse_consistency_error(forward, -3 * forward)
    assert exact.mean.dtype == torch.float64
    assert exact.maximum < 1e-6, "only rounding is left"
    assert wrong.mean.item() == pytest.approx(0.5 * 3**0.5)


def test_the_exponentials_of_a_velocity_and_its_opposite_nearly_undo_each_other() -> None:
    generator = torch.Generator().manual_seed(1)
    coarse = 3 * torch.randn(1, 2, 4, 4, generator=generator)
    velocity = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear", align_corners=True)
    field = integrate(velocity)
    inside = torch.zeros(1, 1, 32, 32)
    inside[..., 8:-8, 8:-8] = 1
    error = inverse_consistency_error(field, integrate(-velocity), mask=inside)
    assert error.maximum < 0.1 * field.norm(dim=1)[inside[:, 0] > 0].max()


def test_only_voxels_of_the_mask_count() -> None:
    forward = torch.zeros(1, 2, 5, 5)
    forward[..., 0, 0] = 3
    mask = torch.ones(1, 1, 5, 5)
    mask[..., 0, 0] = 0
    assert inverse_consistency_error(forward, 0 * forward, mask=mask).maximum == 0
    empty = inverse_consistency_error(forward, 0 * forward, mask=0 * mask)
    assert empty.mean.isnan().all() and empty.maximum.isnan().all()


def test_fields_on_two_grids_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(1, 2, 5, 5\), the backward field \(1, 2, 5, 4\)"):
        inverse_consistency_error(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 4))
    with pytest.raises(InputError, match="2 positive voxel sizes"):
        inverse_consistency_error(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5), [1, -1])

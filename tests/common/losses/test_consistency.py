# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.losses import CycleConsistencyLoss

SIZE = (8, 10)


def shifts(*amounts: float) -> Tensor:
    """Fields that move everything along the first axis."""
    ddf = torch.zeros(len(amounts), 2, *SIZE)
    ddf[:, 0] = torch.tensor(amounts)[:, None, None]
    return ddf


MASK = torch.ones(3, 1, *SIZE)


def test_a_closed_way_costs_nothing() -> None:
    assert CycleConsistencyLoss()(shifts(1, 2, -3), shifts(-1, -2, 3), MASK, MASK).item() == 0


def test_what_is_left_counts_squared_in_halves_of_the_longest_extent() -> None:
    loss = CycleConsistencyLoss()
    there, inside = loss.cycle(shifts(1, 0, 0), MASK, reverse=True)
    assert torch.equal(there, shifts(1)) and inside.all()
    value = loss(shifts(1, 0, 0), shifts(0, 0, 0), MASK, MASK)
    assert value.item() == pytest.approx(0.5 * (2 / 10) ** 2)


def test_only_what_stays_inside_counts() -> None:
    # On the third grid nothing is inside, on the first one half: the points of the latter that stay there.
    mask = MASK.clone()
    mask[2, :, :4] = 0
    there, inside = CycleConsistencyLoss().cycle(shifts(1, 0, 0), mask, reverse=True)
    assert inside[0, 0, 4:].all() and not inside[0, 0, :4].any()
    # Moved by two voxels in the first step, the last two rows leave the image.
    _, inside = CycleConsistencyLoss().cycle(shifts(0, 0, 2), MASK, reverse=True)
    assert inside[0, 0, :6].all() and not inside[0, 0, 6:].any()


def test_fields_are_followed_in_their_order() -> None:
    generator = torch.Generator().manual_seed(0)
    fields = torch.randn(3, 2, *SIZE, generator=generator, dtype=torch.float64)
    where = torch.tensor([3, 4]).double()

    def at(field: Tensor, point: Tensor) -> Tensor:
        low = point.floor().long().clamp(min=0)
        value = torch.zeros(2, dtype=torch.float64)
        point = torch.minimum(point.clamp(min=0), torch.tensor(SIZE) - 1.0)
        low = torch.minimum(point.floor().long(), torch.tensor(SIZE) - 2)
        for i in (0, 1):
            for j in (0, 1):
                corner = low + torch.tensor([i, j])
                value += (1 - (point - corner).abs()).prod() * field[:, corner[0], corner[1]]
        return value

    for reverse, order in ((True, (2, 1, 0)), (False, (0, 1, 2))):
        point = where
        for k in order:
            point = point + at(fields[k], point)
        found = CycleConsistencyLoss().cycle(fields, MASK.double(), reverse)[0][0, :, 3, 4]
        torch.testing.assert_close(found, point - where)


def test_gradient_is_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    fields = [torch.randn(6, 2, 4, 5, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    mask = torch.ones(6, 1, 4, 5).double()
    assert torch.autograd.gradcheck(lambda a, b: CycleConsistencyLoss()(a, b, mask, mask), fields)


def test_batch_without_whole_circles_is_refused() -> None:
    with pytest.raises(InputError, match="batch of 2 pairs; it needs circles of 3: make batch_size a multiple of 3"):
        CycleConsistencyLoss()(shifts(0, 0), shifts(0, 0), MASK[:2], MASK[:2])


def test_circles_gain_their_weight_in_the_first_epoch_whatever_process_has_them() -> None:
    def draws(*indices: int, epoch: int = 1) -> Tensor:
        return torch.tensor([[7, epoch, index] for index in indices])

    loss, whole = CycleConsistencyLoss(rise=12), CycleConsistencyLoss()
    there, back, mask = shifts(1, 0, 0, 0, 3, 0), shifts(0, 0, 0, 1, 1, 1), MASK.repeat(2, 1, 1, 1)

    def alone(circle: int) -> Tensor:
        part = slice(3 * circle, 3 * circle + 3)
        return whole(there[part], back[part], MASK, MASK)

    for first, shares in ((0, (1 / 4, 2 / 4)), (6, (3 / 4, 4 / 4))):
        both = loss(there, back, mask, mask, draws(*range(first, first + 6)))
        torch.testing.assert_close(both, (shares[0] * alone(0) + shares[1] * alone(1)) / 2)
    for steps in (draws(*range(6), epoch=2), None):
        torch.testing.assert_close(loss(there, back, mask, mask, steps), (alone(0) + alone(1)) / 2)

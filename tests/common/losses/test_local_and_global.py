# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from common.losses import LNCCLoss, LocalAndGlobalNCCLoss, NCCLoss


@pytest.mark.parametrize("size", [(9, 10), (7, 8, 6)])
def test_it_is_the_sum_of_its_parts_and_does_not_see_scale(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.rand((2, 1, *size), generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand((2, 1, *size), generator=generator, dtype=torch.float64)
    for given in ((), (weight,)):
        loss = LocalAndGlobalNCCLoss()(pred, target, *given)
        parts = LNCCLoss(kernel_size=5)(pred, target, *given), NCCLoss()(pred, target, *given)
        assert loss.item() == pytest.approx(parts[0].item() + 2 * parts[1].item(), abs=1e-12)
        # The epsilon of the local correlation alone depends on the scale.
        assert LocalAndGlobalNCCLoss()(3 * pred, target, *given).item() == pytest.approx(loss.item(), abs=1e-4)
    assert LocalAndGlobalNCCLoss()(pred, pred).item() == pytest.approx(0, abs=1e-4)
    assert torch.autograd.gradcheck(LocalAndGlobalNCCLoss(), (pred[:1].requires_grad_(), target[:1]))

# SPDX-License-Identifier: Apache-2.0
"""Standard deviations of draws against all of them at once, and random numbers that leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.blocks.draws import dropping, own_random_numbers, standard_deviation


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_standard_deviation_is_that_of_all_draws_at_once(count: int, offset: float) -> None:
    draws = offset + torch.randn(count, 2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    kept = draws.clone()
    # float32: a few roundings of 6e-8. Around 1000 draws are rounded by 3e-5, of 5e-4 where two differ by little.
    torch.testing.assert_close(standard_deviation(iter(draws)), draws.std(0), rtol=1e-3 if offset else 1e-6, atol=0)
    assert torch.equal(draws, kept)


def test_equal_draws_do_not_scatter_and_one_draw_is_refused() -> None:
    assert standard_deviation([torch.ones(2, 3)] * 5).abs().max() == 0
    with pytest.raises(ValueError, match=r"1 draw\(s\)"):
        standard_deviation([torch.ones(2)])


def test_own_random_numbers_are_the_same_each_time_and_change_no_others() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    drawn = []
    for _ in range(2):
        with own_random_numbers(torch.device("cpu")):
            drawn.append(torch.rand(3))
    assert torch.equal(*drawn) and not torch.equal(drawn[0], expected)
    assert torch.equal(torch.rand(3), expected)


def test_layers_of_dropout_alone_are_as_in_training() -> None:
    network = nn.Sequential(nn.Dropout3d(0.5), nn.BatchNorm3d(2), nn.Sequential(nn.Dropout(0.5)))
    network[1].eval()
    before = [module.training for module in network.modules()]
    with pytest.raises(KeyError), dropping(network):
        assert [module.training for module in network.modules()] == [False, True, False, False, True]
        raise KeyError
    assert [module.training for module in network.modules()] == before

# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from common.checks import InputError
from common.evaluation.training_sizes import PUBLISHED, possible_sizes


def test_published_sizes_that_a_data_set_lacks_are_told_apart() -> None:
    assert possible_sizes([*PUBLISHED], 100) == ([10, 20, 30, 50, 100], [300, 1000, 3384])
    assert possible_sizes([5, 2, 5], 22) == ([2, 5], [])


@pytest.mark.parametrize("sizes", [[30], [1, 2], [0]])
def test_sizes_of_which_none_is_left_or_one_makes_no_pair_are_refused(sizes: list[int]) -> None:
    with pytest.raises(InputError, match="--sizes are .*; give some from 2 to 22"):
        possible_sizes(sizes, 22)


def test_published_figures_are_those_of_the_table_of_methods() -> None:
    # The whole training set is the row of DP-ConvIC-C among the methods.
    assert PUBLISHED[3384] == {"dice": 0.7724, "hd95": 3.3873, "tre": 2.3357, "ndv": 0.0309}
    assert len(PUBLISHED) == 8

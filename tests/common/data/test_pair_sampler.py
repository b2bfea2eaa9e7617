# SPDX-License-Identifier: Apache-2.0
"""Circles of three subjects: how they are drawn, and that the sampler keeps them together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from common.checks import InputError
from common.data import PairSampler, draw_pairs


def test_circles_join_three_different_subjects_of_which_all_orders_come() -> None:
    counts: Counter[tuple[int, ...]] = Counter()
    for epoch in range(400):
        pairs = draw_pairs("cycles", 4, seed=0, epoch=epoch)
        assert len(pairs) == 12
        for first, second, third in zip(pairs[::3], pairs[1::3], pairs[2::3], strict=True):
            assert first[1] == second[0] and second[1] == third[0] and third[1] == first[0]
            counts[first[0], second[0], third[0]] += 1
    assert len(counts) == 24 and all(len(set(circle)) == 3 for circle in counts)
    # 1600 circles, 24 of them: 67 each, with a standard deviation of 8.
    assert min(counts.values()) > 35 and max(counts.values()) < 100


def test_few_subjects_make_as_many_circles_as_are_asked_for() -> None:
    pairs = draw_pairs("cycles", 3, seed=1, epoch=2, count=300)
    assert len(pairs) == 300 and pairs == draw_pairs("cycles", 3, seed=1, epoch=2, count=300)
    assert pairs != draw_pairs("cycles", 3, seed=1, epoch=3, count=300)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_circles_stay_together_on_each_process_and_after_a_resume(replicas: int, drop_last: bool) -> None:
    def sampler(rank: int = 0, number: int = 1) -> PairSampler:
        options: dict[str, Any] = {"num_samples": 15, "flip_axes": (0, 1), "drop_last": drop_last}
        return PairSampler(range(4), "cycles", num_replicas=number, rank=rank, **options)

    drawn = [list(sampler(rank, replicas)) for rank in range(replicas)]
    assert [len(items) for items in drawn] == [len(sampler(rank, replicas)) for rank in range(replicas)]
    for items in drawn:
        for circle in zip(items[::3], items[1::3], items[2::3], strict=True):
            assert [pair.fixed for pair in circle] == [circle[1].moving, circle[2].moving, circle[0].moving]
            assert len({pair.flips for pair in circle}) == 1
    everything = sorted((item for items in drawn for item in items), key=lambda item: item.draw)
    whole = list(sampler())
    assert everything == whole[: len(everything)]
    assert len(whole) == 15 and len(whole) - len(everything) == (3 * (5 % replicas) if drop_last else 0)
    resumed = sampler()
    resumed.start = 6
    assert list(resumed) == whole[6:]


def test_circles_are_whole_and_go_one_way() -> None:
    for options in ({"num_samples": 10}, {"num_samples": 9, "both_ways": True}):
        given: dict[str, Any] = options
        with pytest.raises(InputError, match="but 'cycles' have 3 pairs, one way: give a multiple of 3, and false"):
            PairSampler(range(5), "cycles", **given)
    with pytest.raises(InputError, match=r"1 circle\(s\) leave rank 1 of 2 without work"):
        PairSampler(range(5), "cycles", num_samples=3, num_replicas=2, rank=1)

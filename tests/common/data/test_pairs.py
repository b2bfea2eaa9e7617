# SPDX-License-Identifier: Apache-2.0
"""Pair drawing is a pure function."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.data import draw_pairs
from common.data.pairs import draw_flips

STRATEGIES = ["random_partner", "in_turn", "all", "atlas", "consecutive"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("n", [2, 3, 11])
def test_no_subject_is_paired_with_itself_and_nothing_is_outside(strategy: str, n: int) -> None:
    for epoch in range(20):
        for moving, fixed in draw_pairs(strategy, n, seed=3, epoch=epoch):
            assert moving != fixed and {moving, fixed} <= set(range(n))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_drawing_depends_on_nothing_but_its_arguments(strategy: str) -> None:
    first = draw_pairs(strategy, 9, seed=1, epoch=4)
    draw_pairs(strategy, 9, seed=1, epoch=5)
    torch.manual_seed(7)
    assert draw_pairs(strategy, 9, seed=1, epoch=4) == first


@pytest.mark.parametrize("strategy", ["random_partner", "in_turn", "all", "atlas"])
def test_another_epoch_or_seed_draws_another_order(strategy: str) -> None:
    draws = [draw_pairs(strategy, 30, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(pairs) for pairs in draws}) == 4


def test_random_partner_takes_every_subject_once_as_moving_with_uniform_partners() -> None:
    counts: Counter[tuple[int, int]] = Counter()
    for epoch in range(3000):
        pairs = draw_pairs("random_partner", 4, seed=0, epoch=epoch)
        assert sorted(moving for moving, _ in pairs) == [0, 1, 2, 3]
        counts.update(pairs)
    assert len(counts) == 12 and all(abs(count - 1000) < 130 for count in counts.values())


@pytest.mark.parametrize("count", [3, 7, 17])
def test_in_turn_every_subject_is_moving_as_often_whatever_an_epoch_is(count: int) -> None:
    epochs = [draw_pairs("in_turn", 7, seed=0, epoch=epoch, count=count) for epoch in range(14)]
    assert all(len(pairs) == count for pairs in epochs)
    row = [pair for pairs in epochs for pair in pairs]
    passes = [row[start : start + 7] for start in range(0, len(row), 7)]
    assert all(sorted(moving for moving, _ in pairs) == [*range(7)] for pairs in passes)
    assert len({tuple(pairs) for pairs in passes}) == len(passes) and len(row) == 14 * count


def test_all_takes_every_ordered_pair_once() -> None:
    pairs = draw_pairs("all", 7, seed=0, epoch=2)
    assert sorted(pairs) == [(m, f) for m in range(7) for f in range(7) if m != f]


def test_atlas_is_moved_to_every_scan() -> None:
    pairs = draw_pairs("atlas", 5, atlas=3)
    assert sorted(pairs) == [(3, 0), (3, 1), (3, 2), (3, 4)]


def test_consecutive_pairs_chain_the_list() -> None:
    assert draw_pairs("consecutive", 4) == [(1, 0), (2, 1), (3, 2)]


def test_listed_pairs_keep_their_order_in_every_epoch() -> None:
    listed = [[2, 0], [0, 1], [2, 0]]
    assert draw_pairs("listed", 3, epoch=5, pairs=listed) == [(2, 0), (0, 1), (2, 0)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_listed_pairs_come_before_any_scheme_of_drawing(strategy: str) -> None:
    listed = [(0, 1), (3, 2), (4, 5), (3, 2)]
    epochs = [draw_pairs(strategy, 8, seed=2, epoch=epoch, pairs=listed) for epoch in range(40)]
    assert all(sorted(pairs) == sorted(listed) for pairs in epochs)
    # 12 orders of these four.
    assert len({tuple(pairs) for pairs in epochs}) > 8
    assert epochs[7] == draw_pairs(strategy, 8, seed=2, epoch=7, pairs=listed)
    with pytest.raises(InputError, match=r"pair \(0, 8\) is outside the 8 subjects"):
        draw_pairs(strategy, 8, pairs=[(0, 8)])


def test_where_no_pairs_are_listed_all_ordered_pairs_count() -> None:
    ordered = [(1, 0), (2, 0), (0, 1), (2, 1), (0, 2), (1, 2)]
    assert draw_pairs("listed", 3, epoch=5) == ordered
    assert sorted(tuple(sorted(pair)) for pair in draw_pairs("either_way", 3, epoch=5)) == sorted(
        tuple(sorted(pair)) for pair in ordered
    )


def test_either_way_takes_each_listed_pair_once_in_either_direction_and_any_order() -> None:
    listed = [(0, 1), (2, 3), (4, 5)]
    seen: Counter[tuple[int, ...]] = Counter()
    for epoch in range(1200):
        pairs = draw_pairs("either_way", 6, seed=4, epoch=epoch, pairs=listed)
        assert pairs == draw_pairs("either_way", 6, seed=4, epoch=epoch, pairs=listed)
        assert sorted((min(pair), max(pair)) for pair in pairs) == listed
        seen.update(pairs)
        seen[tuple(min(pair) for pair in pairs)] += 1
    directions = [count for key, count in seen.items() if len(key) == 2]
    orders = [count for key, count in seen.items() if len(key) == 3]
    assert len(directions) == 6 and all(abs(count - 600) < 70 for count in directions)
    assert len(orders) == 6 and all(abs(count - 200) < 55 for count in orders)


def test_flips_take_each_axis_with_probability_one_half_whatever_the_pairs_are() -> None:
    flips = draw_flips(4000, (0, 1), seed=3, epoch=7)
    assert flips == draw_flips(4000, (0, 1), seed=3, epoch=7) != draw_flips(4000, (0, 1), seed=3, epoch=8)
    counts = Counter(flips)
    assert set(counts) == {(), (0,), (1,), (0, 1)} and all(abs(count - 1000) < 110 for count in counts.values())
    # Not the random numbers that turn the pairs around.
    turned = [pair[0] > pair[1] for pair in draw_pairs("either_way", 2, 3, 7, [(0, 1)] * 4000)]
    agreement = sum(turn == bool(flip) for turn, flip in zip(turned, draw_flips(4000, (0,), 3, 7), strict=True))
    assert abs(agreement - 2000) < 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"strategy": "some", "n": 3},
            "'some' is unknown; use one of random_partner, all, atlas, consecutive, in_turn, cycles, listed",
        ),
        ({"strategy": "all", "n": 1}, r"Pairs of 1 subject\(s\)"),
        ({"strategy": "listed", "n": 3, "pairs": []}, "'listed' got no pairs"),
        ({"strategy": "either_way", "n": 3, "pairs": []}, "'either_way' got no pairs"),
        ({"strategy": "listed", "n": 3, "pairs": [(0, 3)]}, r"pair \(0, 3\) is outside the 3 subjects"),
        ({"strategy": "atlas", "n": 3, "atlas": 3}, "atlas index 3 is outside the 3 subjects"),
        ({"strategy": "cycles", "n": 2}, "'cycles' needs 3 subjects and got 2"),
        ({"strategy": "cycles", "n": 3, "pairs": [(0, 1)]}, "'cycles' draws among all subjects and got pairs"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_pairs(**arguments)


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

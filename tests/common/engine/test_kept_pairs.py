# SPDX-License-Identifier: Apache-2.0
"""Which pairs of a stream are kept, against a look at all of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from common.engine.kept_pairs import ROOM, KeptPairs


def orders(n: int) -> dict[str, list[float]]:
    """Scores in orders that are hard for a rule that sees one pair after the other."""
    rising = [i / n for i in range(n)]
    from_the_middle = sorted(rising, key=lambda score: abs(score - 0.5))
    return {
        "random": np.random.default_rng(n).permutation(rising).tolist(),
        "rising": rising,
        "falling": rising[::-1],
        "from the middle": from_the_middle,
        "from the ends": from_the_middle[::-1],
        "low half, then high half falling": [*rising[: n // 2], *rising[n // 2 :][::-1]],
        "all alike": [0.5] * n,
    }


@pytest.mark.parametrize("order", orders(1))
@pytest.mark.parametrize("n", [3, 4, 16, 17, 30, 101, 500])
def test_ends_are_those_of_all_pairs_and_the_middle_is_near_their_median(n: int, order: str) -> None:
    scores = orders(n)[order]
    pairs: KeptPairs[int] = KeptPairs()
    for i, score in enumerate(scores):
        pairs.add(score, i)
        assert len(list(pairs)) == min(i + 1, ROOM)
    # Sorting is stable: of equals the first to come ranks first.
    ranked = sorted(range(n), key=scores.__getitem__)
    found = pairs.worst_median_best()
    assert list(found) == ["worst pair", "median pair", "best pair"]
    assert found["worst pair"] == (scores[ranked[0]], ranked[0])
    assert found["best pair"] == (scores[ranked[-1]], ranked[-1])
    score, median = found["median pair"]
    assert score == scores[median] and 0 < ranked.index(median) < n - 1
    assert abs(ranked.index(median) - n // 2) <= (0 if n <= ROOM else (n - 1) / 15)


def test_no_two_neighbours_are_far_apart_at_any_time() -> None:
    for scores in orders(200).values():
        pairs: KeptPairs[int] = KeptPairs()
        for i, score in enumerate(scores):
            pairs.add(score, i)
            ranked = sorted(range(i + 1), key=scores.__getitem__)
            ranks = sorted(ranked.index(kept) for _, kept in pairs)
            assert max(np.diff(ranks), default=0) <= max(1, 2 * i / 15)


def test_in_random_order_the_middle_is_one_to_two_percent_away_on_average() -> None:
    for n in (50, 200):
        away = []
        for seed in range(100):
            pairs: KeptPairs[None] = KeptPairs()
            for score in np.random.default_rng(seed).permutation(n):
                pairs.add(float(score), None)
            away.append(abs(pairs.worst_median_best()["median pair"][0] - n // 2) / n)
        assert 0.01 < np.mean(away) < 0.02


def test_one_or_two_pairs_show_the_worse() -> None:
    pairs: KeptPairs[str] = KeptPairs()
    pairs.add(0.7, "a")
    assert pairs.worst_median_best() == {"pair": (0.7, "a")}
    pairs.add(0.6, "b")
    assert pairs.worst_median_best() == {"pair": (0.6, "b")}


def test_pairs_without_a_score_stand_before_the_others_in_their_order() -> None:
    pairs: KeptPairs[str] = KeptPairs()
    for score, name in ((0.7, "a"), (math.nan, "b"), (0.2, "c"), (math.nan, "d"), (0.4, "e")):
        pairs.add(score, name)
    assert [name for _, name in pairs] == ["a", "b", "c", "d", "e"]
    found = {name: pair for name, (_, pair) in pairs.worst_median_best().items()}
    assert found == {"worst pair": "b", "median pair": "c", "best pair": "a"}
    assert math.isnan(pairs.worst_median_best()["worst pair"][0])

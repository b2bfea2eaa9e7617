# SPDX-License-Identifier: Apache-2.0
"""The worst, a middle and the best of many pairs that come one by one, with room for a few."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Pair = TypeVar("Pair")

# A pair is four volumes.
ROOM = 16


class _Place(NamedTuple):
    """Where a pair stands among all: by score, then by arrival; no two stand at the same place."""

    score: float
    arrival: int


class KeptPairs(Generic[Pair]):
    """At most 16 pairs, spread evenly by rank over all that came: the worst, the best, and one near the median.

    The places of all pairs are remembered (two numbers each). When there is one pair too many, one goes whose
    neighbours on both sides have the fewest ranks between them, counted among all pairs that came; the ends stay.

    How near is the middle? For up to 16 pairs it is the median. Of n pairs in any order, it is at most (n - 1) / 15
    ranks away: the distances between the neighbours of the pairs that may go add up to 2 (n - 1) at most, and there are
    15 of these, so that the least is at most 2 (n - 1) / 15; a pair that comes only splits a distance. In random order
    it is 1 to 2 % of the pairs away on average.

    Iterating gives (score, pair) of those kept, in the order in which they came.
    """

    def __init__(self) -> None:
        self._places: list[_Place] = []
        self._kept: dict[_Place, tuple[float, Pair]] = {}

    def __iter__(self) -> Iterator[tuple[float, Pair]]:
        return iter(self._kept.values())

    def add(self, score: float, pair: Pair) -> None:
        """Keep ``pair``, maybe in place of another one.

        Args:
            score: the higher the better; a pair that has none (NaN) stands before all that have one.
            pair: what to keep.
        """
        place = _Place(-math.inf if math.isnan(score) else score, len(self._places))
        bisect.insort(self._places, place)
        self._kept[place] = score, pair
        if len(self._kept) > ROOM:
            ranked = sorted(self._kept)
            ranks = [self._rank(place) for place in ranked]
            del self._kept[ranked[min(range(1, ROOM), key=lambda i: ranks[i + 1] - ranks[i - 1])]]

    def worst_median_best(self) -> dict[str, tuple[float, Pair]]:
        """Name and (score, pair) of the pairs to show; the only one, or the worst of two, where there are no three."""
        ranked = sorted(self._kept)
        if len(ranked) < 3:
            return {"pair": self._kept[ranked[0]]}
        median = min(ranked[1:-1], key=lambda place: abs(self._rank(place) - len(self._places) // 2))
        names = {"worst pair": ranked[0], "median pair": median, "best pair": ranked[-1]}
        return {name: self._kept[place] for name, place in names.items()}

    def _rank(self, place: _Place) -> int:
        return bisect.bisect_left(self._places, place)

# SPDX-License-Identifier: Apache-2.0
"""Which two subjects are registered next: pure functions of (number of subjects, seed, epoch).

A pair is the tuple ``(moving, fixed)`` of indices into the list of subjects. No function here keeps a state, so a run
on one process, on many, or resumed in the middle sees the same pairs in the same order:
:class:`common.data.pair_sampler.PairSampler`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from common.checks import InputError

Pair = tuple[int, int]
_FLIPS = 1
"""Third word of the seed of the flips: their random numbers are not those of the pairs."""
CYCLE = 3
"""Pairs of a circle."""


class DrawnPair(NamedTuple):
    """What a sampler hands to a data set.

    Attributes:
        moving: index of the moving subject.
        fixed: index of the fixed subject.
        flips: spatial axes along which the pair is mirrored.
        draw: (seed, epoch, index in the epoch over all processes): what whatever is random about this item is a
            function of.
    """

    moving: int
    fixed: int
    flips: tuple[int, ...] = ()
    draw: tuple[int, int, int] = (0, 0, 0)


def random_partner(n: int, seed: int, epoch: int) -> list[Pair]:
    """Every subject once as moving, in random order, with a uniformly random other subject as fixed.

    The published recipe of EOIR for OASIS and LUMIR.

    Args:
        n: number of subjects, at least 2.
        seed: seed of the run.
        epoch: number of the epoch; another epoch draws other partners.

    Returns:
        ``n`` pairs (moving, fixed).
    """
    rng = np.random.default_rng([seed, epoch])
    moving = rng.permutation(n)
    fixed = (moving + 1 + rng.integers(0, n - 1, size=n)) % n
    return list(zip(moving.tolist(), fixed.tolist(), strict=True))


def in_turn(n: int, seed: int, epoch: int, count: int | None = None) -> list[Pair]:
    """The next ``count`` pairs of a row without end: every subject once as moving, in random order, and so on anew.

    An epoch begins where the one before has ended, and neither has to take all subjects nor each of them once. The
    published recipe of the dual-pyramid networks: an iterator that is made anew only when it is exhausted.

    Args:
        n: number of subjects, at least 2.
        seed: seed of the run.
        epoch: number of the epoch.
        count: pairs per epoch; None for ``n``.

    Returns:
        ``count`` pairs (moving, fixed), the fixed one a uniformly random other subject.
    """
    count = n if count is None else count
    places = range(epoch * count, (epoch + 1) * count)
    passes = {number: random_partner(n, seed, number) for number in {place // n for place in places}}
    return [passes[place // n][place % n] for place in places]


def all_pairs(n: int, seed: int, epoch: int) -> list[Pair]:
    """All ``n * (n - 1)`` ordered pairs, in a random order that depends on seed and epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(n * (n - 1))
    moving, offset = np.divmod(order, n - 1)
    return list(zip(moving.tolist(), ((moving + 1 + offset) % n).tolist(), strict=True))


def atlas_pairs(n: int, seed: int, epoch: int, atlas: int = 0) -> list[Pair]:
    """The atlas as moving image, every other subject once as fixed, in an order drawn from seed and epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    return [(atlas, scan) for scan in order.tolist() if scan != atlas]


def consecutive_pairs(n: int, seed: int, epoch: int) -> list[Pair]:
    """Neighbours in the list, in order: pair i has moving i + 1 and fixed i, as in the Learn2Reg evaluation lists."""
    return [(i + 1, i) for i in range(n - 1)]


def ordered_pairs(n: int) -> list[Pair]:
    """All ``n * (n - 1)`` ordered pairs, the fixed one by one, each with all others moving."""
    return [(moving, fixed) for fixed in range(n) for moving in range(n) if moving != fixed]


def either_way(pairs: Sequence[Pair], seed: int, epoch: int) -> list[Pair]:
    """The pairs in random order, each as it is or, with probability 1/2, with moving and fixed exchanged.

    The published recipe of EOIR for ACDC, whose pairs are the two frames of a patient.
    """
    rng = np.random.default_rng([seed, epoch])
    order, turned = rng.permutation(len(pairs)), rng.random(len(pairs)) < 0.5
    return [pairs[i][::-1] if turn else pairs[i] for i, turn in zip(order.tolist(), turned, strict=True)]


def shuffled_pairs(pairs: Sequence[Pair], seed: int, epoch: int) -> list[Pair]:
    """The pairs as they are listed, each once, in an order drawn from seed and epoch."""
    return [pairs[i] for i in np.random.default_rng([seed, epoch]).permutation(len(pairs)).tolist()]


def cycles(n: int, seed: int, epoch: int, count: int | None = None) -> list[Pair]:
    """Circles of three different random subjects, each of them (1, 2), (2, 3), (3, 1), one after the other.

    For losses on the way round three subjects (SITReg's second training); circles may come again.

    Args:
        n: number of subjects.
        seed: seed of the run.
        epoch: number of the epoch.
        count: pairs per epoch, three for each circle; None for ``n`` circles.

    Raises:
        InputError: fewer than three subjects.
    """
    if n < CYCLE:
        raise InputError(f"The pair strategy 'cycles' needs {CYCLE} subjects and got {n}; add subjects.")
    circles = n if count is None else count // CYCLE
    rng = np.random.default_rng([seed, epoch])
    first, step, skip = (rng.integers(0, n - taken, size=circles) for taken in range(CYCLE))
    second = (first + 1 + step) % n
    # Of the subjects after the first one, the second is left out.
    third = (first + 1 + skip + (skip >= step)) % n
    pairs = np.stack([first, second, second, third, third, first], axis=1).reshape(-1, 2)
    return [(moving, fixed) for moving, fixed in pairs.tolist()]


def both_ways(pairs: Sequence[Pair]) -> list[Pair]:
    """Each pair as it is, and after it the same with moving and fixed exchanged."""
    return [way for pair in pairs for way in (pair, pair[::-1])]


def draw_flips(count: int, axes: Sequence[int], seed: int = 0, epoch: int = 0) -> list[tuple[int, ...]]:
    """Which spatial axes to flip in each of the ``count`` items of an epoch: each of ``axes`` with probability 1/2."""
    drawn = np.random.default_rng([seed, epoch, _FLIPS]).random((count, len(axes))) < 0.5
    return [tuple(axis for axis, flip in zip(axes, row, strict=True) if flip) for row in drawn]


_STRATEGIES: dict[str, Callable[..., list[Pair]]] = {
    "random_partner": random_partner,
    "all": all_pairs,
    "atlas": atlas_pairs,
    "consecutive": consecutive_pairs,
}
_COUNTED: dict[str, Callable[..., list[Pair]]] = {"in_turn": in_turn, "cycles": cycles}


def draw_pairs(
    strategy: str,
    n: int,
    seed: int = 0,
    epoch: int = 0,
    pairs: Sequence[Sequence[int]] | None = None,
    atlas: int = 0,
    count: int | None = None,
) -> list[Pair]:
    """The pairs (moving, fixed) of one epoch.

    Pairs that a data set lists come before any scheme of drawing: where ``pairs`` are given, "random_partner",
    "in_turn", "all", "atlas" and "consecutive" give these, each once, as they are listed, in an order drawn from seed
    and epoch.

    Args:
        strategy: "random_partner", "in_turn", "all", "atlas", "consecutive", "cycles", "listed" (``pairs`` as they are,
            in their order), or "either_way" (``pairs`` in random order and direction).
        n: number of subjects.
        seed: seed of the run.
        epoch: number of the epoch.
        pairs: (moving, fixed) indices; None for those of the strategy, all ordered ones for "listed" and "either_way".
        atlas: index of the moving image for the strategy "atlas".
        count: how many pairs "in_turn" and "cycles" give, None for ``n`` (circles); the other strategies give all that
            they have.

    Returns:
        Pairs (moving, fixed), moving and fixed in ``range(n)``.

    Raises:
        InputError: unknown strategy, fewer than two subjects (three for "cycles"), an index outside the list of
            subjects, or pairs for "cycles".
    """
    known = [*_STRATEGIES, *_COUNTED, "listed", "either_way"]
    if strategy not in known:
        raise InputError(f"Pair strategy '{strategy}' is unknown; use one of {', '.join(known)}.")
    if n < 2:
        raise InputError(f"Pairs of {n} subject(s) were asked for, but a pair needs two; add subjects.")
    if strategy == "cycles" and pairs is not None:
        raise InputError(
            "The pair strategy 'cycles' draws among all subjects and got pairs: give none "
            "(--train#dataloader#sampler#pairs None)."
        )
    if strategy in ("listed", "either_way") or pairs is not None:
        listed = listed_pairs(strategy, pairs, n)
        if strategy == "listed":
            return listed
        return (either_way if strategy == "either_way" else shuffled_pairs)(listed, seed, epoch)
    if strategy == "atlas":
        if not 0 <= atlas < n:
            raise InputError(f"The atlas index {atlas} is outside the {n} subjects; give an index from 0 to {n - 1}.")
        return atlas_pairs(n, seed, epoch, atlas)
    if strategy in _COUNTED:
        return _COUNTED[strategy](n, seed, epoch, count)
    return _STRATEGIES[strategy](n, seed, epoch)


def listed_pairs(strategy: str, pairs: Sequence[Sequence[int]] | None, n: int) -> list[Pair]:
    """The pairs that a data set lists, checked; all ordered ones where it lists none. Raises as :func:`draw_pairs`."""
    if pairs is None:
        return ordered_pairs(n)
    if len(pairs) == 0:
        raise InputError(f"The pair strategy '{strategy}' got no pairs; give a list of (moving, fixed) indices.")
    listed = [(int(moving), int(fixed)) for moving, fixed in pairs]
    for pair in listed:
        if not all(0 <= index < n for index in pair):
            raise InputError(f"The listed pair {pair} is outside the {n} subjects; use indices from 0 to {n - 1}.")
    return listed

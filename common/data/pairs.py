# SPDX-License-Identifier: Apache-2.0
"""Which two subjects are registered next: pure functions of (number of subjects, seed, epoch), and their sampler.

A pair is the tuple ``(moving, fixed)`` of indices into the list of subjects. No function here keeps a state, so a run
on one process, on many, or resumed in the middle sees the same pairs in the same order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from common.checks import InputError

_logger = logging.getLogger(__name__)
Pair = tuple[int, int]
_FLIPS = 1
"""Third word of the seed of the flips: their random numbers are not those of the pairs."""


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


def draw_pairs(
    strategy: str, n: int, seed: int = 0, epoch: int = 0, pairs: Sequence[Sequence[int]] | None = None, atlas: int = 0
) -> list[Pair]:
    """The pairs (moving, fixed) of one epoch.

    Pairs that a data set lists come before any scheme of drawing: where ``pairs`` are given, "random_partner", "all",
    "atlas" and "consecutive" give these, each once, as they are listed, in an order drawn from seed and epoch.

    Args:
        strategy: "random_partner", "all", "atlas", "consecutive", "listed" (``pairs`` as they are, in their order), or
            "either_way" (``pairs`` in random order and direction).
        n: number of subjects.
        seed: seed of the run.
        epoch: number of the epoch.
        pairs: (moving, fixed) indices; None for those of the strategy, all ordered ones for "listed" and "either_way".
        atlas: index of the moving image for the strategy "atlas".

    Returns:
        Pairs (moving, fixed), moving and fixed in ``range(n)``.

    Raises:
        InputError: unknown strategy, fewer than two subjects, or an index outside the list of subjects.
    """
    known = [*_STRATEGIES, "listed", "either_way"]
    if strategy not in known:
        raise InputError(f"Pair strategy '{strategy}' is unknown; use one of {', '.join(known)}.")
    if n < 2:
        raise InputError(f"Pairs of {n} subject(s) were asked for, but a pair needs two; add subjects.")
    if strategy in ("listed", "either_way") or pairs is not None:
        listed = _listed_pairs(strategy, pairs, n)
        if strategy == "listed":
            return listed
        return (either_way if strategy == "either_way" else shuffled_pairs)(listed, seed, epoch)
    if strategy == "atlas":
        if not 0 <= atlas < n:
            raise InputError(f"The atlas index {atlas} is outside the {n} subjects; give an index from 0 to {n - 1}.")
        return atlas_pairs(n, seed, epoch, atlas)
    return _STRATEGIES[strategy](n, seed, epoch)


def _listed_pairs(strategy: str, pairs: Sequence[Sequence[int]] | None, n: int) -> list[Pair]:
    if pairs is None:
        return ordered_pairs(n)
    if len(pairs) == 0:
        raise InputError(f"The pair strategy '{strategy}' got no pairs; give a list of (moving, fixed) indices.")
    listed = [(int(moving), int(fixed)) for moving, fixed in pairs]
    for pair in listed:
        if not all(0 <= index < n for index in pair):
            raise InputError(f"The listed pair {pair} is outside the {n} subjects; use indices from 0 to {n - 1}.")
    return listed


def _labelled_pairs(labelled: Sequence[bool], pairs: Sequence[Sequence[int]] | None) -> tuple[int, int]:
    """Number of pairs whose subjects both have labels, and of all pairs: the listed ones, or all ordered ones."""
    if pairs is not None:
        return sum(labelled[moving] and labelled[fixed] for moving, fixed in pairs), len(pairs)
    some, n = sum(labelled), len(labelled)
    return some * (some - 1), n * (n - 1)


class PairSampler(DistributedSampler):
    """Yields pairs for :class:`common.data.PairDataset`; rank r of R takes the items r, r + R, ...

    An item is a :class:`DrawnPair`.

    Together the ranks' batches of size b are the batch of size R * b that one process would see. The class is a
    ``DistributedSampler`` because MONAI's workflows call ``set_epoch`` on such samplers when an epoch starts, with the
    number of that epoch counted from 1. For a shorter epoch use ``num_samples`` here and not ``epoch_length`` of the
    engine: ignite would go on with the same iterator in the next epoch, and the new epoch's pairs would be drawn only
    when that iterator is exhausted.

    Args:
        dataset: the data set whose length is the number of subjects; its ``check_pairs``, where it has one, sees all
            pairs that may be drawn.
        strategy: see :func:`draw_pairs`.
        pairs: (moving, fixed) indices that the data set lists, used whatever the strategy, see :func:`draw_pairs`;
            None where it lists none, or to draw among all subjects none the less.
        atlas: index of the moving subject for the strategy "atlas".
        seed: seed of the run; epoch and seed determine the pairs.
        num_samples: largest number of pairs per epoch over all ranks; None for all. The first ones of the epoch's order
            are taken, so the shuffled strategies give other pairs in each epoch and "listed" the head of the list.
        drop_last: True (training) drops the tail that does not fill all ranks; False (evaluation) keeps it, without
            padding by duplicates, so that ranks may differ by one in length.
        flip_axes: spatial axes along which an item is mirrored, each with probability 1/2: both images and labels
            alike. Drawn per item of the epoch from seed and epoch, like the pairs.
        num_replicas: number of processes; default: those of the process group, or 1 without one.
        rank: rank of this process; default as for ``num_replicas``.

    Attributes:
        start: number of items of this rank to leave out on the next ``iter`` only, for resuming in the middle of an
            epoch; the length stays that of a whole epoch.

    Raises:
        InputError: as :func:`draw_pairs` and ``check_pairs``; also for ``num_samples`` < 1, or no pair left for this
            rank.
    """

    # Of subjects, whose number is known; DistributedSampler's own annotation has none.
    dataset: Any

    def __init__(
        self,
        dataset: Sized,
        strategy: str = "random_partner",
        pairs: Sequence[Sequence[int]] | None = None,
        atlas: int = 0,
        seed: int = 0,
        num_samples: int | None = None,
        drop_last: bool = True,
        flip_axes: Sequence[int] = (),
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        num_replicas = (dist.get_world_size() if grouped else 1) if num_replicas is None else num_replicas
        rank = (dist.get_rank() if grouped else 0) if rank is None else rank
        sized: Any = dataset
        super().__init__(sized, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=drop_last)
        if num_samples is not None and num_samples < 1:
            raise InputError(f"num_samples is {num_samples}, but an epoch needs a pair; give None for all pairs.")
        self.strategy, self.pairs, self.atlas = strategy, pairs, atlas
        self.pairs_per_epoch = num_samples
        self.flip_axes = tuple(flip_axes)
        self.start = 0
        total = len(self.epoch_pairs())
        # DistributedSampler measures subjects here; pairs are what this sampler counts.
        self.num_samples = total // num_replicas if drop_last else math.ceil((total - rank) / num_replicas)
        self.total_size = self.num_samples * num_replicas if drop_last else total
        if self.num_samples < 1:
            raise InputError(f"{total} pair(s) leave rank {rank} of {num_replicas} without work; use fewer processes.")
        check = getattr(dataset, "check_pairs", None)
        if check is not None:
            check(self._possible_pairs())
        if rank == 0:
            self._say_what_is_drawn()

    def _say_what_is_drawn(self) -> None:
        if self.pairs is not None and self.strategy != "listed":
            order = "either way round" if self.strategy == "either_way" else "as listed"
            count = len(self.pairs)
            _logger.info("Training uses the %d pairs that the data set lists, %s, in random order.", count, order)
        labelled = getattr(self.dataset, "labelled", [])
        if any(labelled) and not all(labelled):
            with_labels, count = _labelled_pairs(labelled, self.pairs)
            without = self.dataset.data[labelled.index(False)]["image"]
            _logger.warning(
                "Labels for %d of %d pairs: %d of %d scans have none, such as %s; the other pairs go without the terms "
                "of the loss and the figures that need labels.",
                *(with_labels, count, labelled.count(False), len(labelled), without),
            )

    def _possible_pairs(self) -> list[Pair]:
        """What any epoch may draw; where that is all subjects with one another, all of them with the first."""
        n = len(self.dataset)
        if self.pairs is None:
            return [(moving, 0) for moving in range(1, n)]
        return self.epoch_pairs() if self.strategy == "listed" else _listed_pairs(self.strategy, self.pairs, n)

    def epoch_pairs(self) -> list[Pair]:
        """All pairs of the current epoch, of all ranks, before a tail is dropped."""
        n = len(self.dataset)
        return draw_pairs(self.strategy, n, self.seed, self.epoch, self.pairs, self.atlas)[: self.pairs_per_epoch]

    def __iter__(self) -> Iterator[DrawnPair]:
        pairs = self.epoch_pairs()[: self.total_size]
        flips = draw_flips(len(pairs), self.flip_axes, self.seed, self.epoch)
        items = [
            DrawnPair(*pair, flipped, (self.seed, self.epoch, index))
            for index, (pair, flipped) in enumerate(zip(pairs, flips, strict=True))
        ]
        items = items[self.rank :: self.num_replicas]
        start, self.start = self.start, 0
        return iter(items[start:])

    def __len__(self) -> int:
        return self.num_samples

# SPDX-License-Identifier: Apache-2.0
"""The pairs of an epoch (:mod:`common.data.pairs`), dealt out to the processes of a training or evaluation."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence, Sized
from typing import Any

import torch.distributed as dist
from torch.utils.data import DistributedSampler

from common.checks import InputError
from common.data.pairs import CYCLE, DrawnPair, Pair, both_ways, draw_flips, draw_pairs, listed_pairs

_logger = logging.getLogger(__name__)


class PairSampler(DistributedSampler):
    """Yields pairs for :class:`common.data.PairDataset`; rank r of R takes the items r, r + R, ...

    An item is a :class:`DrawnPair`. Of the strategy "cycles" whole circles are dealt out, whose pairs stay together.

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
            alike. Drawn per item (or circle) of the epoch from seed and epoch, like the pairs.
        both_ways: whether each pair that is drawn is followed by the same with moving and fixed exchanged, an item of
            its own. Both count in ``num_samples``.
        num_replicas: number of processes; default: those of the process group, or 1 without one.
        rank: rank of this process; default as for ``num_replicas``.

    Attributes:
        start: number of items of this rank to leave out on the next ``iter`` only, for resuming in the middle of an
            epoch; the length stays that of a whole epoch.

    Raises:
        InputError: as :func:`draw_pairs` and ``check_pairs``; also for ``num_samples`` < 1, no pair left for this rank,
            or circles that are not whole or ``both_ways``.
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
        both_ways: bool = False,
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
        self.both_ways = both_ways
        self.start = 0
        # What stays together on one rank.
        self._unit = CYCLE if strategy == "cycles" else 1
        if self._unit > 1 and (both_ways or (num_samples or 0) % self._unit):
            raise InputError(
                f"num_samples is {num_samples} and both_ways {both_ways}, but 'cycles' have {CYCLE} pairs, one way: "
                f"give a multiple of {CYCLE}, and false."
            )
        total = len(self.epoch_pairs()) // self._unit
        # DistributedSampler measures subjects here; pairs are what this sampler counts.
        units = total // num_replicas if drop_last else math.ceil((total - rank) / num_replicas)
        self.num_samples = units * self._unit
        self.total_size = self.num_samples * num_replicas if drop_last else total * self._unit
        if self.num_samples < 1:
            drawn = "circle(s)" if self._unit > 1 else "pair(s)"
            raise InputError(f"{total} {drawn} leave rank {rank} of {num_replicas} without work; use fewer processes.")
        check = getattr(dataset, "check_pairs", None)
        if check is not None:
            check(self._possible_pairs())
        if rank == 0:
            self._say_what_is_drawn()

    def _say_what_is_drawn(self) -> None:
        if self.pairs is not None and self.strategy != "listed":
            order = "either way round" if self.strategy == "either_way" else "as listed"
            order = "both ways round" if self.both_ways else order
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
        return self.epoch_pairs() if self.strategy == "listed" else listed_pairs(self.strategy, self.pairs, n)

    def epoch_pairs(self) -> list[Pair]:
        """All pairs of the current epoch, of all ranks, before a tail is dropped."""
        count = self.pairs_per_epoch
        drawn = math.ceil(count / 2) if count and self.both_ways else count
        n = len(self.dataset)
        pairs = draw_pairs(self.strategy, n, self.seed, self.epoch, self.pairs, self.atlas, drawn)[:drawn]
        return (both_ways(pairs) if self.both_ways else pairs)[:count]

    def __iter__(self) -> Iterator[DrawnPair]:
        pairs = self.epoch_pairs()[: self.total_size]
        flips = draw_flips(len(pairs) // self._unit, self.flip_axes, self.seed, self.epoch)
        items = [
            DrawnPair(*pair, flips[index // self._unit], (self.seed, self.epoch, index))
            for index, pair in enumerate(pairs)
            if index // self._unit % self.num_replicas == self.rank
        ]
        start, self.start = self.start, 0
        return iter(items[start:])

    def __len__(self) -> int:
        return self.num_samples


def _labelled_pairs(labelled: Sequence[bool], pairs: Sequence[Sequence[int]] | None) -> tuple[int, int]:
    """Number of pairs whose subjects both have labels, and of all pairs: the listed ones, or all ordered ones."""
    if pairs is not None:
        return sum(labelled[moving] and labelled[fixed] for moving, fixed in pairs), len(pairs)
    some, n = sum(labelled), len(labelled)
    return some * (some - 1), n * (n - 1)

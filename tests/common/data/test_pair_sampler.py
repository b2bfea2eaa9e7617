# SPDX-License-Identifier: Apache-2.0
"""The sampler divides what is drawn between processes."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from monai.engines import Workflow
from torch.utils.data import DataLoader, Dataset

from common.checks import InputError
from common.data import PairSampler, draw_pairs
from common.data.pairs import DrawnPair, draw_flips


class Echo(Dataset):
    """Gives its index back: moving, fixed, and the draw."""

    def __init__(self, n: int) -> None:
        """Keep the length."""
        self.n = n

    def __len__(self) -> int:
        """Number of subjects."""
        return self.n

    def __getitem__(self, index: DrawnPair) -> torch.Tensor:
        """(moving, fixed, seed, epoch, index)."""
        return torch.tensor([index.moving, index.fixed, *index.draw])


def test_sampler_refuses_empty_epochs() -> None:
    with pytest.raises(InputError, match="num_samples is 0"):
        PairSampler(Echo(5), num_samples=0)
    with pytest.raises(InputError, match="2 pair.s. leave rank 3 of 4 without work"):
        PairSampler(Echo(2), num_replicas=4, rank=3, drop_last=False)


def test_sampler_without_process_group_is_the_whole_epoch() -> None:
    sampler = PairSampler(Echo(9), seed=5)
    sampler.set_epoch(3)
    assert [item[:2] for item in sampler] == draw_pairs("random_partner", 9, seed=5, epoch=3) and len(sampler) == 9


@pytest.mark.parametrize(("replicas", "batch"), [(2, 1), (2, 2), (3, 2), (4, 3)])
def test_batches_of_all_ranks_together_are_the_batches_of_one_process(replicas: int, batch: int) -> None:
    def loader(batch_size: int, **ranks: Any) -> list[torch.Tensor]:
        sampler = PairSampler(Echo(29), strategy="all", seed=2, num_samples=77, **ranks)
        sampler.set_epoch(6)
        return list(DataLoader(Echo(29), batch_size=batch_size, sampler=sampler, drop_last=True))

    single = loader(batch * replicas)
    ranks = [loader(batch, num_replicas=replicas, rank=rank) for rank in range(replicas)]
    assert {len(batches) for batches in ranks} == {len(single)}
    for whole, parts in zip(single, zip(*ranks, strict=True), strict=True):
        # Item i of the global batch is item i // R of rank i % R.
        assert torch.equal(whole, torch.stack(parts, 1).flatten(0, 1))


def test_training_drops_the_tail_and_evaluation_keeps_it_without_duplicates() -> None:
    listed = [(i % 4, (i + 1) % 4) for i in range(7)]

    def ranks(drop_last: bool) -> list[PairSampler]:
        return [PairSampler(Echo(4), "listed", listed, drop_last=drop_last, num_replicas=3, rank=r) for r in range(3)]

    assert [len(s) for s in ranks(True)] == [len(list(s)) for s in ranks(True)] == [2, 2, 2]
    assert [len(s) for s in ranks(False)] == [len(list(s)) for s in ranks(False)] == [3, 2, 2]
    assert sorted(item[:2] for s in ranks(False) for item in s) == sorted(listed)


def test_short_epochs_see_other_pairs_each_time() -> None:
    sampler = PairSampler(Echo(20), strategy="all", num_samples=5)
    epochs = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        epochs.append([item[:2] for item in sampler])
    assert [len(pairs) for pairs in epochs] == [5, 5] and len(sampler) == 5 and epochs[0] != epochs[1]


def test_flipped_items_are_the_same_on_any_number_of_ranks_and_after_a_resume() -> None:
    listed = [(2 * i, 2 * i + 1) for i in range(12)]

    def sampler(**options: Any) -> PairSampler:
        made = PairSampler(Echo(24), "either_way", listed, seed=1, flip_axes=(0, 1), **options)
        made.set_epoch(3)
        return made

    whole: list[Any] = list(sampler())
    assert [item[:2] for item in whole] == draw_pairs("either_way", 24, 1, 3, listed)
    assert [item[2] for item in whole] == draw_flips(12, (0, 1), 1, 3)
    assert [list(sampler(num_replicas=3, rank=rank)) for rank in range(3)] == [whole[rank::3] for rank in range(3)]
    resumed = sampler()
    resumed.start = 5
    assert list(resumed) == whole[5:]


def test_listed_pairs_are_dealt_out_to_processes_and_the_same_after_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    listed = [(2 * i + 1, 2 * i) for i in range(7)]

    def sampler(**options: Any) -> PairSampler:
        made = PairSampler(Echo(20), "random_partner", listed, seed=1, **options)
        made.set_epoch(4)
        return made

    with caplog.at_level(logging.INFO):
        whole = list(sampler())
    assert "Training uses the 7 pairs that the data set lists, as listed, in random order." in caplog.text
    assert sorted(item[:2] for item in whole) == sorted(listed) != [item[:2] for item in whole]
    ranks = [list(sampler(num_replicas=2, rank=rank)) for rank in range(2)]
    assert ranks == [whole[0:6:2], whole[1:6:2]]
    assert list(sampler(num_samples=3)) == whole[:3]
    resumed = sampler()
    resumed.start = 5
    assert list(resumed) == whole[5:]


def test_start_skips_once_and_leaves_the_length() -> None:
    sampler = PairSampler(Echo(10), num_replicas=2, rank=1)
    whole = list(sampler)
    sampler.start = 3
    assert len(sampler) == 5
    assert list(sampler) == whole[3:] and list(sampler) == whole and sampler.start == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_start_works_through_a_data_loader(workers: int) -> None:
    sampler = PairSampler(Echo(8), seed=1)
    loader = DataLoader(Echo(8), batch_size=2, sampler=sampler, num_workers=workers)
    whole = torch.cat(list(loader))
    sampler.start = 4
    assert torch.equal(torch.cat(list(loader)), whole[4:]) and torch.equal(torch.cat(list(loader)), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_monai_workflow_sets_the_epoch_and_sees_new_pairs_each_epoch(workers: int) -> None:
    loader = DataLoader(Echo(6), batch_size=2, sampler=PairSampler(Echo(6), seed=9), num_workers=workers)
    seen: list[torch.Tensor] = []
    Workflow(device="cpu", max_epochs=3, data_loader=loader, iteration_update=lambda _, b: seen.append(b)).run()
    expected = [pair for epoch in (1, 2, 3) for pair in draw_pairs("random_partner", 6, seed=9, epoch=epoch)]
    items = torch.cat(seen)
    assert [tuple(pair) for pair in items[:, :2].tolist()] == expected
    assert items[:, 2:].tolist() == [[9, epoch, index] for epoch in (1, 2, 3) for index in range(6)]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_circles_stay_together_on_each_process_and_after_a_resume(replicas: int, drop_last: bool) -> None:
    def sampler(rank: int = 0, number: int = 1) -> PairSampler:
        ranks: dict[str, Any] = {"num_replicas": number, "rank": rank}
        return PairSampler(Echo(4), "cycles", num_samples=15, flip_axes=(0, 1), drop_last=drop_last, **ranks)

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


def test_circles_need_whole_epochs() -> None:
    with pytest.raises(InputError, match="num_samples is 10, but 'cycles' have 3 pairs; give a multiple of 3"):
        PairSampler(Echo(5), "cycles", num_samples=10)
    with pytest.raises(InputError, match=r"1 circle\(s\) leave rank 1 of 2 without work"):
        PairSampler(Echo(5), "cycles", num_samples=3, num_replicas=2, rank=1)


@pytest.mark.parametrize(("strategy", "drawn"), [("in_turn", 4), ("random_partner", 3), ("all", 4)])
def test_both_ways_follow_each_other_on_any_number_of_ranks_and_after_a_resume(strategy: str, drawn: int) -> None:
    def sampler(**options: Any) -> PairSampler:
        made = PairSampler(Echo(3), strategy, seed=1, num_samples=7, both_ways=True, **options)
        made.set_epoch(3)
        return made

    whole: list[Any] = list(sampler())
    pairs = [item[:2] for item in whole]
    # Seven of eight: of the last one only the way that was drawn.
    assert pairs[::2] == draw_pairs(strategy, 3, 1, 3, count=4)[:drawn]
    assert pairs[1::2] == [pair[::-1] for pair in pairs[: 2 * (len(pairs) // 2) : 2]]
    assert len(whole) == min(7, 2 * drawn) and [item.draw[2] for item in whole] == [*range(len(whole))]
    ranks = [list(sampler(num_replicas=2, rank=rank)) for rank in range(2)]
    assert [item for both in zip(*ranks, strict=True) for item in both] == whole[:6]
    resumed = sampler()
    resumed.start = 3
    assert list(resumed) == whole[3:]


def test_both_ways_of_listed_pairs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        sampler = PairSampler(Echo(4), "in_turn", [(0, 1), (2, 3)], both_ways=True)
    assert "lists, both ways round, in random order" in caplog.text
    assert sorted(item[:2] for item in sampler) == [(0, 1), (1, 0), (2, 3), (3, 2)]

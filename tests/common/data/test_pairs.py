# SPDX-License-Identifier: Apache-2.0
"""Pair drawing is a pure function; the sampler divides it between processes."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

import pytest
import torch
from monai.engines import Workflow
from torch.utils.data import DataLoader, Dataset

from common.checks import InputError
from common.data import PairSampler, draw_pairs
from common.data.pairs import DrawnPair, draw_flips

STRATEGIES = ["random_partner", "in_turn", "all", "atlas", "consecutive"]


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

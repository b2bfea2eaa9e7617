# SPDX-License-Identifier: Apache-2.0
"""Published splits have the documented sizes, disjoint sets and pairs inside their set."""

from __future__ import annotations

import itertools

import pytest

from common.checks import InputError
from common.data import load_split, split_names


def test_every_split_says_where_it_is_from() -> None:
    assert len(split_names()) == 9
    for name in split_names():
        content = load_split(name)
        assert content["comment"] and content["source"] and content["data_licence"]


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("oasis_dp_v1", {"train": 300, "val": 30, "test": 84}),
        ("abdomenct_dp_v2", {"train": 30, "val": 10, "test": 10}),
        ("abdomenct_eoir", {"train": 20, "val": 3, "test": 7}),
        ("acdc_eoir", {"train": 85, "val": 15, "test": 50}),
        ("lpba40_sitreg", {"train": 25, "validate": 5, "test": 10}),
        ("oasis_lkunet", {"train_2d": 201, "val_2d": 12, "test_2d": 201}),
        ("oasis_lkunet", {"train_3d": 394}),
    ],
)
def test_sets_have_the_documented_sizes_and_are_disjoint(name: str, counts: dict[str, int]) -> None:
    split = load_split(name)
    assert {key: len(set(split[key])) for key in counts} == {key: len(split[key]) for key in counts} == counts
    for one, other in itertools.combinations(counts, 2):
        assert not set(split[one]) & set(split[other])


@pytest.mark.parametrize(
    ("name", "pairs", "members", "count"),
    [
        ("oasis_dp_v1", "pairs_val", "val", 30),
        ("oasis_dp_v1", "pairs_test_020", "test", 20),
        ("oasis_dp_v1", "pairs_test_100", "test", 100),
        ("oasis_dp_v1", "pairs_test_200", "test", 200),
        ("abdomenct_dp_v2", "pairs_val", "val", 45),
        ("abdomenct_dp_v2", "pairs_test", "test", 45),
    ],
)
def test_pairs_stay_inside_their_set(name: str, pairs: str, members: str, count: int) -> None:
    split = load_split(name)
    assert len(split[pairs]) == count == len({tuple(pair) for pair in split[pairs]})
    assert all(fixed != moving and {fixed, moving} <= set(split[members]) for fixed, moving in split[pairs])


def test_abdomen_pairs_are_each_unordered_pair_once() -> None:
    split = load_split("abdomenct_dp_v2")
    for key, members in (("pairs_val", "val"), ("pairs_test", "test")):
        expected = {frozenset(pair) for pair in itertools.combinations(split[members], 2)}
        assert {frozenset(pair) for pair in split[key]} == expected


def test_lumir_validation_is_a_chain_with_one_gap() -> None:
    official = load_split("lumir")["official_2024"]
    assert official["training_id_ranges"] == [[0, 3383]] and official["numTraining"] == 3384
    links = [[n + 1, n] for n in range(3454, 3493) if n != 3483]
    assert sorted(official["validation_pairs"]) == links and len(links) == 38


@pytest.mark.parametrize(
    ("task", "count"),
    [("OASIS_VAL", 19), ("OASIS_TEST", 38), ("AbdomenCTCT_VAL", 45), ("AbdomenCTCT_TEST", 39), ("NLST_VAL", 10)],
)
def test_learn2reg_tasks_have_the_documented_number_of_pairs(task: str, count: int) -> None:
    assert len(load_split("l2r_eval_pairs")[task]["pairs"]) == count


@pytest.mark.parametrize("name", ["absent", "../splits/oasis_dp_v1"])
def test_an_unknown_split_lists_what_exists(name: str) -> None:
    with pytest.raises(InputError, match="no published split .*oasis_dp_v1"):
        load_split(name)

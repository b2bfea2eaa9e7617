# SPDX-License-Identifier: Apache-2.0
"""Tests, corrections and scores against slow definitions and published figures."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from common.checks import InputError
from common.evaluation.published import published_results
from common.metrics.ranking import (
    LUMIR_WEIGHTS,
    hard_entries,
    holm,
    l2r_scores,
    lumir_scores,
    paired_tests,
    rank_scores,
    worse_counts,
)


def signed_rank_by_enumeration(difference: np.ndarray) -> float:
    """Exact two-sided p: the share of all sign patterns whose rank sum is at least as far from its mean."""
    ranks = np.argsort(np.argsort(np.abs(difference))) + 1.0
    centre = ranks.sum() / 2
    observed = abs(ranks[difference > 0].sum() - centre)
    sums = [ranks[np.array(signs)].sum() for signs in product((True, False), repeat=len(ranks))]
    return float(np.mean([abs(total - centre) >= observed - 1e-9 for total in sums]))


def test_paired_test_is_the_exact_signed_rank_test() -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(0.3, 1, 9), generator.normal(0, 1, 9)
    test = paired_tests({"a": first, "b": second}, "b")["a"]
    assert test.p == pytest.approx(signed_rank_by_enumeration(first - second))
    assert test.p_holm == test.p
    assert test.pairs == 9
    assert test.difference == pytest.approx(np.median(first - second))


def test_paired_test_uses_the_pairs_that_both_methods_have() -> None:
    first = np.array([1.0, 2.5, np.nan, 4.0, 5.5, 7.0, 1.0])
    second = np.array([0.5, 2.0, 3.0, np.nan, 4.0, 6.2, 0.1])
    both = ~np.isnan(first - second)
    test = paired_tests({"a": first, "b": second}, "a")["b"]
    assert test == paired_tests({"a": first[both], "b": second[both]}, "a")["b"]
    assert test.pairs == 5


def test_methods_that_agree_everywhere_do_not_differ() -> None:
    values = np.array([1.0, np.inf, 3.0])
    test = paired_tests({"a": values, "b": values.copy()}, "a")["b"]
    assert (test.difference, test.p, test.p_holm) == (0, 1, 1)


def test_paired_tests_need_the_same_pairs_and_a_reference_among_the_methods() -> None:
    with pytest.raises(InputError, match="no method 'c'.* a, b"):
        paired_tests({"a": [1.0], "b": [2.0]}, "c")
    with pytest.raises(InputError, match="same pairs"):
        paired_tests({"a": [1.0], "b": [2.0, 3.0]}, "a")


def test_holms_correction_of_a_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    corrected = holm([0.5, float("nan"), 0.6])
    assert corrected[0] == 1 and np.isnan(corrected[1]) and corrected[2] == 1
    assert holm([]) == []


def test_rank_scores_share_the_mean_of_their_places() -> None:
    np.testing.assert_allclose(rank_scores([0, 2, 2, 3]), [1, 0.55, 0.55, 0.1])
    np.testing.assert_allclose(rank_scores([1, 1, 1]), [0.55] * 3)


def test_worse_count_counts_the_methods_that_are_clearly_better() -> None:
    generator = np.random.default_rng(1)
    values = generator.normal(0, 0.1, (4, 10, 3)) + np.array([0, 1, 1, 2])[:, None, None]
    assert worse_counts(values, higher_better=True).tolist() == [3, 1, 1, 0]
    assert worse_counts(values, higher_better=False).tolist() == [0, 1, 1, 3]


def test_hard_entries_are_the_lowest_of_the_reference() -> None:
    dice = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.7]])
    assert hard_entries(dice, 0.3).tolist() == [1, 3]


def test_l2r_score_is_the_geometric_mean_over_figures() -> None:
    generator = np.random.default_rng(2)
    steps = np.array([0, 1, 2])
    dice = generator.normal(0, 0.1, (3, 10, 4)) + steps[:, None, None]
    sdlogj = generator.normal(0, 0.1, (3, 10)) + steps[:, None]
    scores = l2r_scores({"dice": dice, "sdlogj": sdlogj}, hard_entries(dice[0]))
    np.testing.assert_allclose(scores["dice"], [0.1, 0.55, 1])
    np.testing.assert_allclose(scores["dice30"], [0.1, 0.55, 1])
    np.testing.assert_allclose(scores["sdlogj"], [1, 0.55, 0.1])
    np.testing.assert_allclose(scores["score"], [0.1 ** (2 / 3), 0.55, 0.1 ** (1 / 3)])


def test_a_missing_dice_ranks_as_zero_and_an_infinite_distance_as_ten() -> None:
    dice, hd95 = np.full((2, 20), 0.5), np.full((2, 20), 9.0)
    dice[1], hd95[1] = np.nan, np.inf
    scores = l2r_scores({"dice": dice, "hd95": hd95})
    np.testing.assert_allclose(scores["dice"], [1, 0.1])
    np.testing.assert_allclose(scores["hd95"], [1, 0.1])
    with pytest.raises(InputError, match="sdlogj"):
        l2r_scores({"sdlogj": [[np.nan], [1.0]]})


def test_lumir_score_of_the_best_and_worst_of_a_table() -> None:
    rows = {
        "best": {"dice": 0.8, "hd95": 3.0, "tre": 2.0, "ndv": 0.0},
        "between": {"dice": 0.7, "hd95": 3.5, "tre": 3.0, "ndv": 0.5},
        "worst": {"dice": 0.6, "hd95": 4.0, "tre": 4.0, "ndv": 1.0},
    }
    assert lumir_scores(rows) == pytest.approx({"best": 1, "between": 0.5, "worst": 0})
    wider = {"dice": (0.4, 0.8), "hd95": (3.0, 5.0), "tre": (2.0, 6.0), "ndv": (0.0, 2.0)}
    assert lumir_scores(rows, wider) == pytest.approx({"best": 1, "between": 0.75, "worst": 0.5})


def test_lumir_weights_give_the_published_scores() -> None:
    rows = published_results("LUMIR2024", "val snapshot 2024-07-31")
    names = {"dice": "normalised_Dice", "hd95": "normalised_HD95", "tre": "normalised_TRE", "ndv": "normalised_NDV"}
    methods = dict.fromkeys(row.method for row in rows)
    assert len(methods) == 15
    for method in methods:
        values = {row.metric: row.value for row in rows if row.method == method}
        score = sum(weight * values[names[figure]] for figure, weight in LUMIR_WEIGHTS.items())
        assert score == pytest.approx(values["average_score"], abs=7e-5)

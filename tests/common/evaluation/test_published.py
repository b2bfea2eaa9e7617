# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest

from common.checks import InputError
from common.evaluation.published import FIGURES, published_results, published_table
from scripts.package import BUNDLES, bundle_files


def test_every_row_is_complete_and_cites_a_repository() -> None:
    rows = published_results()
    assert len(rows) == 576
    for row in rows:
        assert all((row.dataset, row.split, row.method, row.metric)), row
        assert re.match(r"[\w.-]+/[\w.-]+(@[0-9a-f]{8})? \S", row.source), row
        assert row.value >= 0
        assert not row.std or float(row.std) >= 0


def test_rows_are_found_by_any_of_their_columns() -> None:
    (row,) = published_results("lumir2024", "val", "ours(eoir)", "HD95_mm")
    assert (row.mean, row.value, row.source) == ("3.3296", 3.3296, "XiangChen1994/EOIR LUMIR README results")
    assert {row.metric for row in published_results(method="LapIRNv2")} == {
        "Dice",
        "Dice30",
        "HD95",
        "SDlogJ",
        "rank_score_without_runtime",
    }
    assert published_results(dataset="nowhere") == []


def test_a_bound_counts_as_its_value() -> None:
    (row,) = published_results("IXI", method="SyN", metric="percent_det_le_0")
    assert (row.mean, row.value) == ("<0.0001", 1e-4)


def test_figures_of_two_sources_of_one_number_agree() -> None:
    for method in ("TransMorph", "VoxelMorph", "SynthMorph", "deedsBCV"):
        found: dict[str, set[float]] = {}
        for row in published_results("LUMIR2024", "val", method):
            figure, factor = FIGURES[row.metric]
            found.setdefault(figure, set()).add(round(factor * row.value, 4))
        assert all(len(values) == 1 for values in found.values()), found


def test_tables_are_named_by_dataset_and_the_beginning_of_a_split() -> None:
    assert {row.split for row in published_table("OASIS")} == {"test 200 pairs"}
    assert {row.split for row in published_table("LUMIR2024:VAL")} == {"val"}
    assert {row.split for row in published_table("LUMIR2024:val snap")} == {"val snapshot 2024-07-31"}


@pytest.mark.parametrize(
    ("name", "problem"), [("LUMIR2024", "is not unique"), ("LUMIR2024:x", "not exist"), ("", "not exist")]
)
def test_a_table_that_is_not_one_is_refused_with_those_that_exist(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=f'{problem}; choose one of: .*"LUMIR2024:test"'):
        published_table(name)


def test_the_tables_travel_with_every_packed_bundle() -> None:
    bundle = next(path.parent.parent for path in sorted(BUNDLES.glob("*/configs/metadata.json")))
    assert "common/evaluation/published.csv" in {str(name) for name, _ in bundle_files(bundle)}

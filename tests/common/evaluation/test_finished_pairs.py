# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from common.checks import InputError
from common.evaluation.finished_pairs import FinishedPairs, is_unfinished
from common.evaluation.pair_files import LandmarkFiles, PairFiles

CASE = {"moving_id": "m", "fixed_id": "f", "dice": 0.5, "dice_per_label": {1: 0.25, 7: float("nan")}}


@pytest.fixture
def pair(tmp_path: Path) -> PairFiles:
    names = ("field", "moving", "fixed", "moving_label", "moving_points", "fixed_points")
    for name in names:
        (tmp_path / name).write_text(name)
    field, moving, fixed, label, *points = (str(tmp_path / name) for name in names)
    landmarks = (LandmarkFiles("tre", moving=points[0], fixed=points[1]),)
    return PairFiles(
        moving_id="m", fixed_id="f", field=field, moving=moving, fixed=fixed, moving_label=label, landmarks=landmarks
    )


def test_a_finished_pair_comes_back_with_its_labels_as_numbers(tmp_path: Path, pair: PairFiles) -> None:
    out = tmp_path / "out"
    record = FinishedPairs(out, {"hd95": None})
    assert record.case(pair) is None
    record.keep(pair, CASE)
    again = FinishedPairs(out, {"hd95": None}).case(pair)
    assert again is not None and str(again) == str(CASE) and is_unfinished(out)
    record.remove()
    assert not is_unfinished(out)


@pytest.mark.parametrize("name", ["field", "moving", "moving_label", "fixed_points"])
def test_a_pair_of_which_a_file_was_replaced_is_not_finished(tmp_path: Path, pair: PairFiles, name: str) -> None:
    record = FinishedPairs(tmp_path / "out", {})
    record.keep(pair, CASE)
    (tmp_path / name).write_text("another content")
    assert record.case(pair) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"files": []}'])
def test_a_pair_whose_figures_are_damaged_is_not_finished(tmp_path: Path, pair: PairFiles, text: str) -> None:
    record = FinishedPairs(tmp_path / "out", {})
    record.keep(pair, CASE)
    (tmp_path / "out" / "pairs" / "m_to_f.json").write_text(text)
    assert record.case(pair) is None


def test_other_settings_are_refused_and_forgotten_on_request(tmp_path: Path, pair: PairFiles) -> None:
    out = tmp_path / "out"
    FinishedPairs(out, {"hd95": "voxels", "trust": False}).keep(pair, CASE)
    with pytest.raises(
        InputError, match="unfinished results that were made with another hd95: choose another --output"
    ):
        FinishedPairs(out, {"hd95": None, "trust": False})
    assert FinishedPairs(out, {"hd95": None, "trust": False}, overwrite=True).case(pair) is None
    # The form of an earlier version.
    (out / "pairs" / "settings.json").write_text('{"hd95": null, "trust": false}')
    with pytest.raises(InputError, match="settings.json is damaged, or not the record of unfinished results"):
        FinishedPairs(out, {"hd95": None, "trust": False})


def test_an_evaluation_without_a_finished_pair_leaves_nothing(tmp_path: Path) -> None:
    FinishedPairs(tmp_path / "new" / "out", {}).discard_if_empty()
    assert not (tmp_path / "new").exists()

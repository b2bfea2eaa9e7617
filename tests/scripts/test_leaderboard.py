# SPDX-License-Identifier: Apache-2.0
"""Leaderboards of small made-up evaluations whose ranking is known."""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.checks import InputError
from common.io.tables import write_csv, write_json
from common.metrics.ranking import lumir_scores, paired_tests
from scripts import leaderboard

PAIRS = [(f"f{n}", f"m{n}") for n in range(10)]
LABELS = (1, 2, 7)
GAINS = {"zero": 0.0, "weak": 0.1, "good": 0.2}

Maker = Callable[..., Path]


@pytest.fixture
def evaluation(tmp_path: Path) -> Maker:
    """Writes the folder of an evaluation whose Dice grows, and whose distances shrink, with the gain of its name."""

    def make(name: str, pairs: list[tuple[str, str]] = PAIRS, **changes: Any) -> Path:
        folder = tmp_path / "runs" / name
        gain = GAINS[name]
        cases, labels = [], []
        for fixed, moving in pairs:
            generator = np.random.default_rng(int(fixed[1:]))
            before = generator.uniform(0.4, 0.6, len(LABELS)) + changes.get("shift", 0)
            after = before + gain * generator.uniform(0.9, 1.1, len(LABELS))
            ids = {"fixed_id": fixed, "moving_id": moving}
            figures = {"dice": after.mean(), "dice_before": before.mean(), "hd95": 5 - 10 * gain, "tre": 4 - gain}
            figures |= {"ndv": gain * generator.uniform(0.9, 1.1), "seconds": 1 + gain, "sdlogj_l2r": gain}
            cases.append({**ids, **{key: float(value) for key, value in figures.items()}, "convention": "voxels"})
            for label, a, b in zip(changes.get("labels", LABELS), after, before, strict=True):
                labels.append({**ids, "label": label, "dice": float(a), "dice_before": float(b)})
        write_csv(folder / "cases.csv", cases)
        write_csv(folder / "labels.csv", labels)
        write_json(folder / "summary.json", {"settings": changes.get("settings", {"hd95": "voxels"})})
        return folder

    return make


def run(tmp_path: Path, *arguments: Any) -> tuple[str, dict[str, dict[str, str]]]:
    """Markdown and rows of the table of a leaderboard."""
    leaderboard.main([*map(str, arguments), "--output", str(tmp_path / "out")])
    with open(tmp_path / "out" / "leaderboard.csv", newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    return (tmp_path / "out" / "leaderboard.md").read_text(), rows


def column(folder: Path, name: str) -> list[float]:
    with open(folder / "cases.csv", newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def test_runs_stand_best_first_with_mean_spread_and_corrected_tests(evaluation: Maker, tmp_path: Path) -> None:
    folders = {name: evaluation(name) for name in GAINS}
    text, rows = run(tmp_path, *folders.values())
    assert set(rows) == {*GAINS, "before registration"}
    dice = {name: column(folder, "dice") for name, folder in folders.items()}
    tests = paired_tests(dice, "good")
    for name, values in dice.items():
        assert float(rows[name]["dice_mean"]) == pytest.approx(statistics.fmean(values), rel=1e-5)
        assert float(rows[name]["dice_std"]) == pytest.approx(statistics.pstdev(values), rel=1e-5)
        if name != "good":
            assert float(rows[name]["dice_p_holm"]) == pytest.approx(tests[name].p_holm, rel=1e-5)
    assert rows["good"]["dice_p_holm"] == "reference"
    assert rows["zero"]["ndv_p_holm"] == "reference", "less folding is better"
    assert rows["before registration"]["dice_mean"] == rows["zero"]["dice_mean"]
    assert re.search(rf"\*\*{statistics.fmean(dice['good']):.4f} ± \d\.\d{{4}}\*\*", text)
    assert "3 runs on 10 pairs" in text


def test_rank_scores_follow_the_gains_and_the_regularity(evaluation: Maker, tmp_path: Path) -> None:
    _, rows = run(tmp_path, *(evaluation(name) for name in GAINS))
    assert [float(rows[name]["l2r_dice"]) for name in ("good", "zero")] == [1, 0.1]
    assert [float(rows[name]["l2r_sdlogj_l2r"]) for name in GAINS] == pytest.approx([1, 0.55, 0.1])
    for name in GAINS:
        parts = [float(value) for key, value in rows[name].items() if re.fullmatch("l2r_(?!score).*", key)]
        assert float(rows[name]["l2r_score"]) == pytest.approx(float(np.prod(parts)) ** (1 / len(parts)), rel=1e-4)


def test_lumir_score_ranges_over_runs_and_published_rows(evaluation: Maker, tmp_path: Path) -> None:
    text, rows = run(tmp_path, evaluation("weak"), evaluation("good"), "--published", "LUMIR2024:val")

    def figures(row: Mapping[str, str]) -> dict[str, float]:
        return {name: float(row[f"{name}_mean"]) for name in columns}

    columns = ("dice", "hd95", "tre", "ndv")
    complete = {name: figures(row) for name, row in rows.items() if row["lumir_score"]}
    assert {"weak", "good", "SITReg-v2 †", "Ours(EOIR) †"} < set(complete)
    for name, score in lumir_scores(complete).items():
        assert float(rows[name]["lumir_score"]) == pytest.approx(score, abs=1e-4)
    assert "0.7805 ± 0.0287" in text, "published figures as printed"
    assert rows["uniGradICON †"]["dice_mean"] == "0.7369", "per cent become fractions"
    assert "HengjieLiu/Unsupervised-DL-DIR-Revisited README table 1-1" in text


def test_published_ranges_leave_the_published_scores_alone(evaluation: Maker, tmp_path: Path) -> None:
    good = evaluation("good")
    options = ["--published", "LUMIR2024:val", "--score_ranges", "published"]
    _, one = run(tmp_path, good, *options)
    _, two = run(tmp_path, good, evaluation("zero"), *options, "--overwrite")
    assert one["VFA †"]["lumir_score"] == two["VFA †"]["lumir_score"]
    with pytest.raises(InputError, match="add --published"):
        run(tmp_path, good, "--score_ranges", "published", "--overwrite")


def test_only_common_pairs_count_and_the_missing_ones_are_named(
    evaluation: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, part = evaluation("weak"), evaluation("good", PAIRS[:8])
    text, rows = run(tmp_path, whole, part)
    sentence = "good lacks 2 pairs, left out for all: m8 to f8, m9 to f9."
    assert sentence in text
    assert sentence in capsys.readouterr().err
    assert float(rows["weak"]["dice_mean"]) == pytest.approx(statistics.fmean(column(whole, "dice")[:8]), rel=1e-5)
    assert rows["weak"]["pairs"] == "8"


def test_a_reference_and_names_may_be_given(evaluation: Maker, tmp_path: Path) -> None:
    text, rows = run(tmp_path, f"A|B={evaluation('weak')}", evaluation("good"), "--reference", "A|B")
    assert rows["A|B"]["dice_p_holm"] == "reference"
    assert r"A\|B" in text
    with pytest.raises(InputError, match="no run 'C'"):
        run(tmp_path, evaluation("weak"), "--reference", "C", "--overwrite", "true")


def test_costs_of_cases_and_summary_are_columns_without_a_test(evaluation: Maker, tmp_path: Path) -> None:
    network, tool = evaluation("good"), evaluation("weak")
    measured = {"metrics": {"peak_memory_gb": {"mean": 1.25}}, "parameters": 123456}
    write_json(network / "summary.json", measured)
    write_csv(
        tool / "cases.csv", [{**row, "peak_memory_gb": 0.4} for row in csv.DictReader((tool / "cases.csv").open())]
    )
    options = ["--figures", "dice", "parameters", "peak_memory_gb", "--reference", "weak", "--notes", "One.", "Two."]
    text, rows = run(tmp_path, network, tool, *options)
    costs = [[row.get(f"{name}_mean") for name in ("parameters", "peak_memory_gb")] for row in rows.values()]
    assert costs == [["123456", "1.25"], ["", "0.4"], ["", ""]]
    assert "parameters_p_holm" not in rows["good"] and "hd95_mean" not in rows["good"]
    figures, tests = (part.splitlines() for part in text.split("## ")[1:3])
    assert text.startswith("# Leaderboard\n\nOne.\n\nTwo.\n\n2 runs on 10 pairs")
    assert figures[4].startswith("| Method | L2R rank score") and "Dice" in figures[4] and "HD95" not in figures[4]
    assert re.search(r"\| \*\*123,456\*\* \| 1\.25 \|$", figures[6]) and figures[7].endswith("| – | **0.40** |")
    assert re.search(r"\| good \| \*\*0\.0020 better\*\* \|$", tests[6]), "the least p that ten pairs can give"
    assert '<p class="note">Two.</p>' in (tmp_path / "out" / "leaderboard.html").read_text()
    text, _ = run(tmp_path, tool, "--figures", "dice", "parameters", "--overwrite", "true")
    assert re.search(r"\| weak \| .* \| – \|$", text, re.M), "a column that is asked for, and nobody has"
    with pytest.raises(InputError, match="No run has the figure 'dices'; there are .*dice, "):
        run(tmp_path, network, "--figures", "dices", "--overwrite", "true")


def test_the_page_needs_nothing_else_and_holds_the_tables(evaluation: Maker, tmp_path: Path) -> None:
    run(tmp_path, evaluation("weak"), f"<good>={evaluation('good')}", "--published", "OASIS", "--title", "A & B")
    page = (tmp_path / "out" / "leaderboard.html").read_text()
    assert "<title>A &amp; B</title>" in page
    assert "&lt;good&gt;" in page and "<good>" not in page
    assert page.count("<table") == 3
    assert not re.search(r"(src|href)=\"?http", page)


def test_a_single_run_without_labels_is_a_table_of_means(evaluation: Maker, tmp_path: Path) -> None:
    folder = evaluation("good")
    (folder / "labels.csv").unlink()
    (folder / "summary.json").unlink()
    text, rows = run(tmp_path, folder)
    assert "Paired tests" not in text and "Rank scores" not in text
    assert list(rows) == ["good", "before registration"]


def test_a_figure_without_a_value_in_some_pairs_is_averaged_over_the_others(evaluation: Maker, tmp_path: Path) -> None:
    for name in ("weak", "good"):
        path = evaluation(name) / "cases.csv"
        lines = path.read_text().splitlines()
        place = lines[0].split(",").index("tre")
        cells = lines[1].split(",")
        cells[place] = ""
        lines[1] = ",".join(cells)
        path.write_text("\n".join(lines))
    _, rows = run(tmp_path, tmp_path / "runs" / "weak", tmp_path / "runs" / "good")
    assert float(rows["good"]["tre_mean"]) == pytest.approx(3.8)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"settings": {"hd95": "millimetres"}}, "different settings: hd95 is voxels and millimetres"),
        ({"labels": (1, 2, 3)}, "different labels of m0 to f0: only one has 3, 7"),
        ({"shift": 0.01}, r"differ before registration \(dice_before of m0 to f0"),
        ({"pairs": [("f11", "m11")]}, "no pair in common"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    evaluation: Maker, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        run(tmp_path, evaluation("weak"), evaluation("good", **changes))
    assert not (tmp_path / "out").exists()


def test_folders_that_hold_no_evaluation_are_named(evaluation: Maker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none/cases\.csv is missing or empty"):
        run(tmp_path, tmp_path / "none")
    folder = evaluation("good")
    with pytest.raises(InputError, match="called alike"):
        run(tmp_path, folder, folder)
    (folder / "summary.json").write_text("{")
    with pytest.raises(InputError, match=r"summary\.json is no JSON"):
        run(tmp_path, folder)
    lines = (folder / "cases.csv").read_text().splitlines()
    (folder / "cases.csv").write_text("\n".join([*lines, lines[1]]))
    with pytest.raises(InputError, match="holds the pair m0 to f0 twice"):
        run(tmp_path, folder)
    (folder / "cases.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks moving_id or fixed_id"):
        run(tmp_path, folder)


def test_nothing_is_replaced_without_being_asked(evaluation: Maker, tmp_path: Path) -> None:
    folder = evaluation("good")
    run(tmp_path, folder)
    with pytest.raises(InputError, match="holds a leaderboard already"):
        run(tmp_path, folder)
    run(tmp_path, folder, "--overwrite")

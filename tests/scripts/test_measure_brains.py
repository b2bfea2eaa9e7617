# SPDX-License-Identifier: Apache-2.0
"""The command line, with a stand-in for the processes that measure."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.engine.command_line import check_options, read_command_line
from common.engine.option_names import check_names
from common.io.tables import write_csv, write_json
from scripts import baselines, evaluate, measure_brains

ROOT = Path(__file__).parents[2]
NETWORKS = ["a_brains", "a_brains_labels", "synthmorph_shapes3d"]
NAMES = [*NETWORKS, *(f"{name}_50_steps" for name in (*NETWORKS, "instance_any")), *measure_brains.TOOLS]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What was run, in a repository with three networks; each evaluation gets a little better."""
    seen: list[list[str]] = []

    def run(command: Sequence[str], name: str, log: Path, environment: Mapping[str, str]) -> None:
        assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "1"
        log.write_text(name)
        words = list(command[1:])
        seen.append(words)
        if words[0].endswith("baselines.py"):
            return
        folder = Path(words[words.index("--output" if words[0].endswith("evaluate.py") else "--output_dir") + 1])
        assert not (folder / "cases.csv").exists(), "an evaluation would refuse the folder"
        pairs = [{"moving_id": f"m{n}", "fixed_id": f"f{n}"} for n in range(7)]
        figures = dict.fromkeys("hd95 ndv fold_fraction sdlogj sdlogj_l2r cpu_seconds peak_memory_gb".split(), 1.0)
        dice = [0.5 + 0.01 * len(seen) + 0.001 * n for n in range(7)]
        write_csv(folder / "cases.csv", [{**p, "dice": d, **figures} for p, d in zip(pairs, dice, strict=True)])
        write_json(folder / "summary.json", {"parameters": 0 if words[0].endswith("evaluate.py") else 5})

    monkeypatch.setattr(measure_brains, "run_logged", run)
    monkeypatch.setattr(measure_brains, "check_installed", lambda name, python: None)
    monkeypatch.setattr(measure_brains, "ROOT", tmp_path / "repository")
    weights = {"dp_conv_c_oasis": ("model", "model_labels"), "synthmorph_shapes3d": ("model",), "instance_any": ()}
    for bundle, files in weights.items():
        place = tmp_path / "repository" / "bundles" / bundle.replace("dp_conv_c_oasis", "a_brains")
        shutil.copytree(ROOT / "bundles" / bundle / "configs", place / "configs")
        (place / "models").mkdir()
        for name in files:
            (place / "models" / f"{name}.pt").write_text(f"{bundle} {name}")
    (tmp_path / "dataset.json").write_text("{}")
    (tmp_path / "groups.json").write_text("{}")
    return seen


def run(tmp_path: Path, *further: str) -> list[dict[str, str]]:
    """Rows of the leaderboard."""
    words = ["--dataset_dir", str(tmp_path), "--label_groups", str(tmp_path / "groups.json"), *further]
    measure_brains.main([*words, "--output", str(tmp_path / "runs")])
    with open(tmp_path / "runs" / "leaderboard.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_network_and_tool_is_measured_and_stands_in_the_table(calls: list[list[str]], tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert {row["method"].replace(", ", "_").replace(" ", "_") for row in rows} == set(NAMES)
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == set(NAMES)
    (greedy,) = (row for row in rows if row["method"] == "greedy")
    assert greedy["dice_p_holm"] == "reference" and greedy["parameters_mean"] == ""
    assert sum(row["parameters_mean"] == "5" for row in rows) == len(NETWORKS) * 2 + 1
    networks = [words for words in calls if "--io_steps" in words]
    assert [words[words.index("--io_steps") + 1] for words in networks] == ["0"] * 3 + ["50"] * 4
    ships = [Path(words[words.index("--ckpt_path") + 1]).name for words in networks if "--ckpt_path" in words]
    assert ships == ["model.pt", "model_labels.pt", "model.pt"] * 2
    text = (tmp_path / "runs" / "leaderboard.md").read_text()
    assert "Neuromorphometrics" in text and "| a_brains, labels, 50 steps |" in text


def test_without_greedy_the_best_of_each_figure_is_the_reference(calls: list[list[str]], tmp_path: Path) -> None:
    rows = run(tmp_path, "--tools", "demons", "--workers", "3")
    assert [row["method"] for row in rows if row["dice_p_holm"] == "reference"] == ["demons"]
    assert len(rows) == len(NAMES) - 3 and not any("syn" in words for words in calls)


def test_words_that_are_passed_on_are_known_where_they_go(calls: list[list[str]], tmp_path: Path) -> None:
    run(tmp_path)
    for words in calls:
        if words[0].endswith(".py"):
            module = baselines if words[0].endswith("baselines.py") else evaluate
            module.parser().parse_args(words[1:])
            continue
        given = read_command_line(words[words.index("monai.bundle") + 1 :])
        assert given is not None
        check_options(given)
        check_names({**given.first, **given.changes()}, set(given.first))


def test_what_is_finished_stays_and_what_changed_is_measured_again_when_asked(
    calls: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = measure_brains.run_logged

    def interrupted(command: Sequence[str], name: str, *rest: Any) -> None:
        if name.endswith("syn"):
            raise KeyboardInterrupt
        stand_in(command, name, *rest)

    monkeypatch.setattr(measure_brains, "run_logged", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(measure_brains, "run_logged", stand_in)
    del calls[:]
    run(tmp_path)
    assert [Path(words[0]).name for words in calls] == ["baselines.py", "evaluate.py"] * 3

    del calls[:]
    (tmp_path / "repository/bundles/a_brains/models/model_labels.pt").write_text("trained further")
    with pytest.raises(InputError, match="runs holds a leaderboard already"):
        run(tmp_path)
    (tmp_path / "runs" / "leaderboard.csv").rename(tmp_path / "leaderboard.csv")
    for name in ("leaderboard.md", "leaderboard.html"):
        (tmp_path / "runs" / name).unlink()
    with pytest.raises(InputError, match="a_brains_labels holds figures that were made with another weights"):
        run(tmp_path)
    assert not calls
    run(tmp_path, "--overwrite", "true")
    assert [Path(words[words.index("--ckpt_path") + 1]).name for words in calls] == ["model_labels.pt"] * 2


def test_after_a_failure_nothing_further_is_begun(
    calls: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(command: Sequence[str], name: str, *_: Any) -> None:
        calls.append(list(command))
        raise InputError(f"{name} ended with 1")

    monkeypatch.setattr(measure_brains, "run_logged", failing)
    with pytest.raises(InputError, match="The measurement of a_brains ended with 1"):
        run(tmp_path)
    assert len(calls) == 1 and not (tmp_path / "runs" / "leaderboard.md").exists()


def test_folders_of_others_and_what_is_missing_are_named_before_anything_is_run(
    calls: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str, python: str) -> None:
        raise InputError(f"{name} needs a package.")

    monkeypatch.setattr(measure_brains, "check_installed", absent)
    with pytest.raises(InputError, match="greedy needs a package"):
        run(tmp_path)
    (tmp_path / "runs" / "demons").mkdir(parents=True)
    (tmp_path / "runs" / "demons" / "cases.csv").write_text("")
    with pytest.raises(InputError, match="demons holds files, and no measured.json says where from: choose another"):
        run(tmp_path, "--overwrite", "true")
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json does not exist; name the data with --dataset_dir"):
        run(tmp_path)
    assert not calls

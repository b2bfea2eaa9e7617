# SPDX-License-Identifier: Apache-2.0
"""The command line, with a stand-in for the training of a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data.shapes3d import generate_shapes3d
from common.evaluation.trainings import Training
from common.io.tables import read_csv
from scripts import study
from scripts.step_memory import Figures


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Training, dict[str, str]]]:
    """What was to be trained, with the variables of its process; Dice grows from one to the next."""
    seen: list[tuple[Training, dict[str, str]]] = []

    def train(training: Training, folder: Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
        seen.append((training, environment or {}))
        return {"name": training.name, "dice": 0.6 + 0.1 * len(seen), "dice_before": 0.5}

    monkeypatch.setattr(study, "train_and_evaluate", train)
    return seen


def value(training: Training, option: str) -> str:
    return training.options[training.options.index(option) + 1]


def test_every_method_gets_the_same_time_pairs_and_rate(
    trained: list[tuple[Training, dict[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study.main(["methods", "--dataset_dir", str(tmp_path), "--output", str(tmp_path / "out"), "--cpu_seconds", "60"])
    assert [training.name for training, _ in trained] == list(study.METHODS)
    for training, variables in trained:
        assert value(training, "--max_cpu_seconds") == "60" and value(training, "--learning_rate") == "0.001"
        assert value(training, "--train#dataloader#sampler#strategy") == "random_partner"
        assert variables["OMP_NUM_THREADS"] == "1" and len(training.options) % 2 == 0
        assert training.bundle.name == study.METHODS[training.name][0]
        assert training.evaluation == ["--section", "validation"]
    rows = read_csv(tmp_path / "out" / "methods.csv")
    assert [row["name"] for row in rows] == list(study.METHODS) and "| before registration |" in capsys.readouterr().out


def test_sizes_that_there_are_no_subjects_for_are_left_out(
    trained: list[tuple[Training, dict[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = generate_shapes3d(tmp_path / "data", num_subjects=6, size=(16, 16, 16), validation=2, test=0, progress=False)
    words = ["sizes", "eoir_shapes3d", "--dataset_dir", str(data), "--output", str(tmp_path / "out")]
    study.main([*words, "--sizes", "4", "2", "30", "--options", "--max_epochs 3 --seed 1"])
    assert [value(training, "--train_subjects") for training, _ in trained] == ["2", "4"]
    assert all(value(training, "--max_epochs") == "3" for training, _ in trained)
    text = capsys.readouterr().out
    assert "Left out: 30; the data set has 4 subjects" in text and "| 3384, published: DP-ConvIC-C on LUMIR |" in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"sizes.{kind}" for kind in "csv md svg png".split()
    }
    with pytest.raises(InputError, match="--sizes are 10, 20, .*; give some from 2 to 4"):
        study.main(words)


def test_a_bundle_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no bundle 'eoir'; the bundles are .*eoir_abdomenct, "):
        study.main(["sizes", "eoir", "--dataset_dir", str(tmp_path), "--output", str(tmp_path / "out")])


def test_memory_is_measured_for_what_the_record_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def measure(names: list[str], edges: list[int], known: Figures, keep: Callable[[Figures], None]) -> Figures:
        asked.append((names, edges, known))
        row = {"peak_gb": 1.25, "step_cpu_seconds": 3.5, "parameters": 12}
        figures = {name: {**known.get(name, {}), **dict.fromkeys(edges, row)} for name in names}
        keep(figures)
        return figures

    monkeypatch.setattr(study, "measure_all", measure)
    words = ["memory", "--networks", "EOIR", "--output", str(tmp_path), "--sizes"]
    study.main([*words, "64"])
    study.main([*words, "96"])
    assert asked[0][2] == {} and set(asked[1][2]["EOIR"]) == {64}
    assert "| EOIR, 96 | 12 | 1.25 | 3.50 |" in capsys.readouterr().out
    assert [row["edge"] for row in read_csv(tmp_path / "memory.csv")] == ["64", "96"]
    assert {path.name for path in tmp_path.iterdir()} == {f"memory.{kind}" for kind in "csv md svg png json".split()}

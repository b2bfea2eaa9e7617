# SPDX-License-Identifier: Apache-2.0
"""The command line, with a stand-in for the training of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data.shapes3d import generate_shapes3d
from common.evaluation.trainings import Training
from common.io.tables import read_csv
from scripts import study


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

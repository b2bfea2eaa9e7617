# SPDX-License-Identifier: Apache-2.0
"""One bundle in real processes; all else with stand-ins for them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from common.checks import InputError
from common.data.shapes3d import generate_shapes3d
from common.evaluation import trainings
from common.evaluation.trainings import Training, evaluate_command, train_and_evaluate, train_command
from common.io.checkpoints import load_checkpoint

BUNDLE = Path(__file__).parents[3] / "bundles" / "eoir_shapes3d"


def test_a_bundle_is_trained_and_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = generate_shapes3d(tmp_path / "data", num_subjects=8, size=(32, 32, 32), validation=2, test=2, progress=False)
    options = ["--dataset_dir", str(data), "--reader", "datalist", "--train_subjects", "3"]
    options += ["--network_def#start_channel", "2", "--max_epochs", "1", "--device", "cpu"]
    training = Training("3 subjects", BUNDLE, options)
    figures = train_and_evaluate(training, tmp_path / "out", {"OMP_NUM_THREADS": "1"})

    place = tmp_path / "out" / "3_subjects"
    content = load_checkpoint(place / "train" / "checkpoint.pt")
    summary = json.loads((place / "evaluate" / "summary.json").read_text())
    assert figures["steps"] == content["iteration"] == 3 and figures["train_cpu_seconds"] > 0
    assert figures["parameters"] == sum(weights.numel() for weights in load_checkpoint(place / "model.pt").values())
    assert figures["dice"] == summary["metrics"]["dice"]["mean"] and figures["pairs"] == 2
    assert figures["dice_before"] == summary["metrics"]["dice"]["before"]
    assert 0 < figures["cpu_seconds"] < 60 and 0.1 < figures["train_memory_gb"] < 20

    monkeypatch.setattr(trainings, "run_logged", lambda *_: pytest.fail("nothing is left to do"))
    assert train_and_evaluate(training, tmp_path / "out") == figures
    with pytest.raises(InputError, match="figures that were made with another options: choose another --output"):
        train_and_evaluate(training._replace(options=[*options, "--seed", "1"]), tmp_path / "out")


def test_an_evaluation_gets_the_options_that_it_knows(tmp_path: Path) -> None:
    options = ["--reader", "datalist", "--network_def#start_channel", "2", "--network_def::int_steps", "3"]
    options += ["--learning_rate", "0.1", "--train#dataloader#sampler#strategy", "all", "--seed", "1"]
    training = Training("a", BUNDLE, options, ["--section", "test"])
    train, evaluate = train_command(training, tmp_path), evaluate_command(training, tmp_path)
    assert [word for word in options if word in train] == options
    assert [word for word in options if word in evaluate] == options[:6]
    assert "--section" not in train and evaluate[evaluate.index("--section") + 1] == "test"
    assert evaluate[evaluate.index("--ckpt_path") + 1] == train[train.index("--ckpt_path") + 1]


def test_an_interrupted_study_goes_on_with_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def run(command: list[str], *_: Any) -> None:
        calls.append(command[6])
        if calls == ["train", "evaluate"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainings, "run_logged", run)
    monkeypatch.setattr(trainings, "_of_training", lambda place: {"steps": 5})
    monkeypatch.setattr(trainings, "_of_evaluation", lambda place: {"pairs": 2, "hd95": "inf"})
    training = Training("a", BUNDLE, [])
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(training, tmp_path)
    for _ in range(2):
        assert train_and_evaluate(training, tmp_path) == {"name": "a", "steps": 5, "pairs": 2, "hd95": math.inf}
    assert calls == ["train", "evaluate", "evaluate"]


def test_what_a_process_said_in_the_end_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; print('ERROR: --seed is -1; give another.'); print('later'); sys.exit(3)"
    monkeypatch.setattr(trainings, "train_command", lambda *_: [trainings.sys.executable, "-c", code])
    log = re.escape(str(tmp_path / "a" / "train.log"))
    with pytest.raises(InputError, match=f"ended with 3 and said: --seed is -1; give another. .*{log}"):
        train_and_evaluate(Training("a", BUNDLE, []), tmp_path)
    assert not (tmp_path / "a" / "figures.json").exists()

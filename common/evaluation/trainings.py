# SPDX-License-Identifier: Apache-2.0
"""Bundles trained and evaluated one after the other, each in processes of its own, and the figures that this gives.

A study compares such trainings: of several methods, or of one method with more and more subjects.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.evaluation.processes import run_logged
from common.io.checkpoints import load_checkpoint
from common.io.run_record import RunRecord
from common.io.tables import write_json

OVERLAY = {"+handlers": [{"_target_": "common.engine.study_figures.StudyFigures", "metrics": "@metrics"}]}
"""What an evaluation of a study has beyond the bundle's own, as a second configuration."""


class Training(NamedTuple):
    """One training of a study.

    Attributes:
        name: in the tables, and of its folder.
        bundle: folder of the bundle.
        options: words of the command line behind ``train``, such as ``("--learning_rate", "0.001")``; those that name
            something in ``evaluate.json``, too, also go to the evaluation.
        evaluation: words for the evaluation alone.
    """

    name: str
    bundle: Path
    options: Sequence[str]
    evaluation: Sequence[str] = ()


def train_and_evaluate(
    training: Training, folder: Path, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Train a bundle, evaluate the weights that it leaves, and collect the figures; nothing that is finished is redone.

    ``FOLDER/NAME``, without blanks, gets the folders ``train`` and ``evaluate`` with all that both workflows write,
    ``model.pt``, ``train.log``, ``evaluate.log`` and ``figures.json``. A training that was interrupted goes on with its
    checkpoint.

    Args:
        training: what to train.
        folder: of the study.
        environment: variables of the processes, beside those of this one.

    Returns:
        ``name``; means over the pairs as in ``summary.json``, such as ``dice`` and ``dice_before``; ``steps`` and
        ``train_cpu_seconds`` of the training; ``parameters``; ``train_memory_gb``, the peak of the process, where the
        system tells.

    Raises:
        InputError: when the folder holds figures of other options, or a process fails: what it said, and its log.
    """
    place = (folder / training.name.replace(" ", "_")).resolve()
    settings = {"bundle": training.bundle.name, "options": list(training.options)}
    record = RunRecord(place / "figures.json", place, "figures", settings, option="--output")
    done: dict[str, Any] = {}
    if record.path.is_file():
        (done,) = record.read("figures")
    variables = {**os.environ, **(environment or {})}
    if "steps" not in done:
        memory = run_logged(train_command(training, place), "train", place / "train.log", variables)
        done = _of_training(place) | ({} if memory is None else {"train_memory_gb": memory})
        record.write(figures=done)
    if "pairs" not in done:
        write_json(place / "evaluate.json", OVERLAY)
        run_logged(evaluate_command(training, place), "evaluate", place / "evaluate.log", variables)
        done |= _of_evaluation(place)
        record.write(figures=done)
    # In JSON infinity is a text: the HD95 of a label that warping lost.
    infinite = {name: float(value) for name, value in done.items() if isinstance(value, str)}
    return {"name": training.name, **done, **infinite}


def train_command(training: Training, place: Path) -> list[str]:
    """The command that trains, or goes on with it, into the folder of the training."""
    own = ["--output_dir", str(place / "train"), "--ckpt_path", str(place / "model.pt"), "--resume", "true"]
    return _bundle_command(training.bundle, "train", [str(training.bundle / "configs" / "train.json")], own, training)


def evaluate_command(training: Training, place: Path) -> list[str]:
    """The command that evaluates the weights in the folder of the training."""
    config = training.bundle / "configs" / "evaluate.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    pairs = zip(training.options[::2], training.options[1::2], strict=True)
    kept = [word for pair in pairs if re.split("#|::", pair[0].removeprefix("--"))[0] in known for word in pair]
    own = ["--output_dir", str(place / "evaluate"), "--ckpt_path", str(place / "model.pt")]
    own += ["--history", str(place / "train" / "history.csv"), "--overwrite", "true", *training.evaluation]
    files = [str(config), str(place / "evaluate.json")]
    return _bundle_command(training.bundle, "evaluate", files, own, training._replace(options=kept))


def _bundle_command(bundle: Path, workflow: str, files: list[str], own: list[str], training: Training) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", workflow, "--config_file", str(files)]
    return [*command, "--bundle_root", str(bundle), *training.options, *own]


def _of_training(place: Path) -> dict[str, Any]:
    content = load_checkpoint(place / "train" / "checkpoint.pt")
    weights = content["network"].values()
    return {
        "steps": content["iteration"],
        "train_cpu_seconds": content["cpu_seconds"],
        "parameters": sum(weight.numel() for weight in weights),
    }


def _of_evaluation(place: Path) -> dict[str, Any]:
    summary = json.loads((place / "evaluate" / "summary.json").read_text(encoding="utf-8"))
    figures: dict[str, Any] = {"pairs": summary["pairs"]}
    for name, entry in summary["metrics"].items():
        figures[name] = entry["mean"]
        figures |= {f"{name}_{kind}": entry[kind] for kind in ("before", "std") if kind in entry}
    return figures

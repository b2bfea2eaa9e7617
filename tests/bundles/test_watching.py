# SPDX-License-Identifier: Apache-2.0
"""MONAI's own handlers, added by a second configuration as MONAI documents them, see what the training does."""

from __future__ import annotations

import csv
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from .conftest import ROOT

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"
CONFIG = BUNDLE / "configs" / "train.json"
LOSS = "$monai.handlers.from_engine(['loss'], first=True)"
# Of MONAI's documentation; the early stop finds every epoch worse than the one before.
WATCHERS = {
    "logger": {"_target_": "MetricLogger", "evaluator": "@validate::evaluator"},
    "early": {"_target_": "EarlyStopHandler", "patience": 1, "score_function": "$lambda engine: -engine.state.epoch"},
    "+train#handlers": [
        {"_target_": "StatsHandler", "name": None, "tag_name": "train_loss", "output_transform": LOSS},
        {
            "_target_": "TensorBoardStatsHandler",
            "log_dir": "$@output_dir + '/watch'",
            "tag_name": "train_loss",
            "output_transform": LOSS,
        },
        {
            "_target_": "CheckpointSaver",
            "save_dir": "$@output_dir + '/saved'",
            "save_dict": {"network": "@network_def"},
            "save_interval": 1,
        },
        "@logger",
    ],
    "+validate#handlers": [{"_target_": "StatsHandler", "iteration_log": False, "name": None}, "@early"],
    "run": ["$@early.set_trainer(@train::trainer)", "$@train", "$print('logged', [loss for _, loss in @logger.loss])"],
}


def train(output_dir: Path, phantoms: Path, config: Any, **options: Any) -> None:
    no_logging: Any = False
    settings: dict[str, Any] = {"network_def#start_channel": 2, **options}
    monai.bundle.run(
        config_file=config,
        meta_file=str(BUNDLE / "configs" / "metadata.json"),
        logging_file=no_logging,
        bundle_root=str(BUNDLE),
        dataset_dir=str(phantoms),
        output_dir=str(output_dir),
        ckpt_path=str(output_dir / "model.pt"),
        val_interval=1,
        pairs_per_epoch=2,
        **settings,
    )


def test_handlers_of_a_second_configuration(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "watch.json").write_text(json.dumps(WATCHERS))
    with caplog.at_level(logging.INFO):
        train(tmp_path, phantoms, [str(CONFIG), str(tmp_path / "watch.json")], max_epochs=5)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert len(rows) == 2, "stopped early"
    means = [float(row["lncc"]) + 5 * float(row["smoothness"]) for row in rows]

    events = EventAccumulator(str(tmp_path / "watch")).Reload().Scalars("train_loss")
    losses = [event.value for event in events]
    assert [sum(losses[:2]) / 2, sum(losses[2:]) / 2] == pytest.approx(means, rel=1e-5)
    printed = [record.getMessage() for record in caplog.records if record.name.startswith("ignite.engine")]
    lines = [line.partition("train_loss: ")[2].strip() for line in printed if "train_loss" in line]
    assert lines == [f"{loss:.4f}" for loss in losses]
    logged = capsys.readouterr().out.rpartition("logged ")[2]
    assert json.loads(logged) == pytest.approx(losses, rel=1e-6)
    validated = [line for line in printed if "Metrics -- " in line]
    assert all(f"dice: {float(row['val_dice']):.4f}" in line for row, line in zip(rows, validated, strict=True))
    saved = torch.load(tmp_path / "saved" / "network_epoch=2.pt", weights_only=True)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_tracking_by_mlflow(phantoms: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    train(tmp_path, phantoms, str(CONFIG), max_epochs=1, tracking="mlflow")
    (row,) = csv.DictReader((tmp_path / "history.csv").open())
    with sqlite3.connect(tmp_path / "mlruns.db") as database:
        losses = [value for (value,) in database.execute("select value from metrics where key = 'train_loss'")]
        (dice,) = database.execute("select value from metrics where key = 'dice'").fetchone()
    assert sum(losses) / 2 == pytest.approx(float(row["lncc"]) + 5 * float(row["smoothness"]), rel=1e-5)
    assert dice == pytest.approx(float(row["val_dice"]), rel=1e-5)

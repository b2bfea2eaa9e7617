# SPDX-License-Identifier: Apache-2.0
"""Training processes are killed for good, and what comes of resuming them is compared bit for bit."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import torch

from .conftest import ROOT, TINY, environment

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"


def training(phantoms: Path, output: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--config_file", "configs/train.json"),
        *("--dataset_dir", str(phantoms), "--output_dir", str(output), "--ckpt_path", str(output / "model.pt")),
        *("--max_epochs", "4", "--val_interval", "2", "--checkpoint_seconds", "0", *TINY, *options),
    ]


def kill_after(checkpoints: int, command: list[str], output: Path) -> None:
    """Start training and kill the process when it has written that many checkpoints since its start."""
    checkpoint = output / "checkpoint.pt"
    process = subprocess.Popen(
        command, cwd=BUNDLE, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    seen = {checkpoint.stat().st_mtime_ns} if checkpoint.exists() else set()
    count = len(seen) + checkpoints
    deadline = time.monotonic() + 300
    while len(seen) < count:
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        if checkpoint.exists():
            seen.add(checkpoint.stat().st_mtime_ns)
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_killed_and_resumed_training_ends_with_the_same_weights(phantoms: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(training(phantoms, whole), cwd=BUNDLE, env=environment(), check=True, capture_output=True)

    kill_after(2, training(phantoms, killed), killed)
    first = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert first["iteration"] % first["epoch_length"] != 0, "killed in the middle of an epoch"
    kill_after(5, training(phantoms, killed, "--resume", "True"), killed)
    command = training(phantoms, killed, "--resume", "True")
    subprocess.run(command, cwd=BUNDLE, env=environment(), check=True, capture_output=True)

    expected, actual = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, killed))
    assert actual["iteration"] == expected["iteration"] == 4 * expected["epoch_length"]
    assert actual["best_metric"] == expected["best_metric"]
    for name, weights in expected["network"].items():
        assert torch.equal(actual["network"][name], weights), name
    for name, state in expected["optimizer"]["state"].items():
        assert all(torch.equal(actual["optimizer"]["state"][name][key], value) for key, value in state.items())
    best = [torch.load(folder / "model.pt", weights_only=True) for folder in (whole, killed)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[0])
    rows = [list(csv.DictReader((folder / "history.csv").open())) for folder in (whole, killed)]
    figures = [[{**row, "seconds": None} for row in table] for table in rows]
    assert figures[0] == figures[1]

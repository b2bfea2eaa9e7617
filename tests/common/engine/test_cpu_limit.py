# SPDX-License-Identifier: Apache-2.0
"""A training of three steps an epoch, on a processor whose every step takes a second."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader

from common.checks import InputError
from common.data import PairSampler
from common.engine import ResumeHandler, cpu_limit
from common.engine.cpu_limit import CpuLimit
from common.io.checkpoints import load_checkpoint, save_atomically


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, pair: Any) -> dict[str, torch.Tensor]:
        return {"image": torch.tensor([float(pair[0])]), "label": torch.tensor([float(pair[1])])}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = itertools.count()
    monkeypatch.setattr(cpu_limit.time, "process_time", lambda: float(next(seconds)))


def train(path: Path, limit: float | None, resume: bool = False) -> tuple[Any, nn.Linear]:
    """Four epochs at most; the trainer's state, and the network."""
    torch.manual_seed(0)
    network, data = nn.Linear(1, 1), Pairs()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=4,
        train_data_loader=DataLoader(data, sampler=PairSampler(data, strategy="random_partner")),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[CpuLimit(limit), ResumeHandler(path, network, optimizer, resume=resume)],
    )
    trainer.run()
    return trainer.state, network


@pytest.mark.parametrize(("limit", "steps"), [(0.5, 1), (5, 5), (6, 6), (99, 12), (None, 12)])
def test_a_training_ends_with_the_step_that_reaches_the_limit(limit: float | None, steps: int, tmp_path: Path) -> None:
    state, _ = train(tmp_path / "checkpoint.pt", limit)
    content = load_checkpoint(tmp_path / "checkpoint.pt")
    assert state.iteration == content["iteration"] == content["cpu_seconds"] == steps


@pytest.mark.parametrize("limit", [4, 6])
def test_it_goes_on_under_a_higher_limit_with_what_it_used(limit: float, tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole.pt", 8)
    train(tmp_path / "parts.pt", limit)
    with pytest.raises(InputError, match=f"has used {limit} CPU seconds, and --max_cpu_seconds is {limit}: .* raise"):
        train(tmp_path / "parts.pt", limit, resume=True)
    state, parts = train(tmp_path / "parts.pt", 8, resume=True)
    assert state.iteration == state.cpu_seconds == 8
    assert torch.equal(parts.weight, whole.weight)


def test_a_checkpoint_that_does_not_say_its_seconds_counts_from_nothing(tmp_path: Path) -> None:
    train(tmp_path / "checkpoint.pt", 4)
    content = load_checkpoint(tmp_path / "checkpoint.pt")
    del content["cpu_seconds"]
    save_atomically(content, tmp_path / "checkpoint.pt")
    assert train(tmp_path / "checkpoint.pt", 3, resume=True)[0].iteration == 7


def test_several_processes_would_end_at_different_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match="--max_cpu_seconds is for a training in one process"):
        train(tmp_path / "checkpoint.pt", 4)

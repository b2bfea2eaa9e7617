# SPDX-License-Identifier: Apache-2.0
"""Noise of training steps: a function of seed, step and process, whatever was drawn before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.data import PairSampler
from common.engine import ResumeHandler
from common.engine.noise import SeededNoise


class Pairs(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, pair: Any) -> dict[str, Tensor]:
        return {"image": torch.tensor([float(pair[0] - pair[1])]), "label": torch.tensor([float(pair[0])])}


class Noisy(nn.Linear):
    def __init__(self) -> None:
        super().__init__(1, 1)
        self.drawn: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(1)
        self.drawn.append(noise.item())
        out: Tensor = super().forward(nn.functional.dropout(x, 0.5)) + noise
        return out


class Stop(Exception):
    pass


class StopAt:
    def __init__(self, iteration: int | None) -> None:
        self.iteration = iteration

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.iteration == self.iteration:
            raise Stop


def train(path: Path, seed: int = 0, resume: bool = False, stop_at: int | None = None) -> Noisy:
    torch.manual_seed(5)
    network, data = Noisy(), Pairs()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    # What a run draws beside its steps must not matter.
    torch.rand(17 if resume else 3)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=DataLoader(data, sampler=PairSampler(data, seed=seed)),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[
            SeededNoise(),
            ResumeHandler(path, network, optimizer, resume=resume, every_seconds=0),
            StopAt(stop_at),
        ],
    ).run()
    return network


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_resumed_training_draws_the_noise_that_it_would_have_drawn(tmp_path: Path, stop_at: int) -> None:
    whole = train(tmp_path / "whole.pt")
    with pytest.raises(Stop):
        train(tmp_path / "killed.pt", stop_at=stop_at)
    resumed = train(tmp_path / "killed.pt", resume=True)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert len({*whole.drawn}) == 9 and whole.drawn[-len(resumed.drawn) :] == resumed.drawn


def test_noise_depends_on_seed_and_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = train(tmp_path / "a.pt"), train(tmp_path / "b.pt", seed=1)
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    beside = train(tmp_path / "c.pt")
    assert len({*first.drawn, *other.drawn, *beside.drawn}) == 27

# SPDX-License-Identifier: Apache-2.0
"""What a training hangs on its trainer, in the order that counts."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import MetricLogger, StatsHandler, from_engine
from torch import nn
from torch.utils.data import DataLoader

from common.data import PairSampler
from common.engine import PrepareRegistrationBatch, RegistrationInferer, TrainingHandlers, registered
from common.losses import RegistrationLoss, Term
from common.metrics.handlers import RegistrationMetrics


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, pair: Any) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(pair[0] + 10 * pair[1])
        images = torch.rand(2, 1, 8, 9, generator=generator)
        return {"moving": images[0], "fixed": images[1], "moving_id": str(pair[0]), "fixed_id": str(pair[1])}


class Shift(nn.Module):
    """A displacement, with noise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))

    def forward(self, image: torch.Tensor, details: bool = False) -> Any:
        ddf = self.shift[None, :, None, None].expand(len(image), 2, *image.shape[2:])
        ddf = ddf + 0.01 * torch.randn(()) if self.training else ddf
        return {"ddf": ddf} if details else ddf


class Own:
    """A bundle's own handler: halves the shift at the end of an epoch."""

    def __init__(self, network: Shift) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        with torch.no_grad():
            self.network.shift.mul_(0.5)


def train(
    output_dir: Path, falling: bool, epochs: int = 2, decollate: bool = True, *watchers: Any
) -> tuple[Shift, torch.optim.Optimizer]:
    network, data, device = Shift(), Pairs(), torch.device("cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) if falling else None
    loss = RegistrationLoss({"mse": Term(nn.MSELoss(), ["warped", "fixed"])})
    parts: dict[str, Any] = {"device": device, "network": network, "prepare_batch": PrepareRegistrationBatch()}
    evaluator = SupervisedEvaluator(
        val_data_loader=DataLoader(data, sampler=PairSampler(data)),
        inferer=RegistrationInferer(),
        key_val_metric={"dice": RegistrationMetrics([1], output_transform=registered)},
        **parts,
    )
    handlers = TrainingHandlers(
        output_dir,
        output_dir / "model.pt",
        network,
        optimizer,
        loss,
        evaluator,
        val_interval=2,
        lr_scheduler=scheduler,
        resume=True,
    )
    SupervisedTrainer(
        max_epochs=epochs,
        train_data_loader=DataLoader(data, sampler=PairSampler(data)),
        optimizer=optimizer,
        loss_function=loss,
        inferer=RegistrationInferer(details=True),
        decollate=decollate,
        train_handlers=[Own(network), handlers, *watchers],
        **parts,
    ).run()
    return network, optimizer


@pytest.mark.parametrize("falling", [False, True])
def test_learning_rate_falls_where_there_is_a_schedule(tmp_path: Path, falling: bool) -> None:
    _, optimizer = train(tmp_path, falling)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025 if falling else 0.1)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert ("lr_scheduler" in checkpoint) == falling
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.025 if falling else 0.1)


def test_what_a_bundle_adds_is_saved_and_all_that_a_training_leaves_is_there(tmp_path: Path) -> None:
    network, _ = train(tmp_path, falling=False)
    assert network.shift.abs().max() > 0
    assert torch.equal(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"]["shift"], network.shift)
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["shift"], network.shift)
    assert [row["epoch"] for row in csv.DictReader((tmp_path / "history.csv").open())] == ["1", "2"]
    assert (tmp_path / "report.html").is_file() and list((tmp_path / "tensorboard").glob("events*"))


@pytest.mark.parametrize("decollate", [True, False])
def test_handlers_of_monai_find_the_loss(tmp_path: Path, decollate: bool) -> None:
    logger = MetricLogger()
    seen: list[float] = []
    stats = StatsHandler(
        iteration_print_logger=lambda engine: seen.append(from_engine(["loss"], first=True)(engine.state.output))
    )
    train(tmp_path, False, 2, decollate, logger, stats)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    losses = [loss for _, loss in logger.loss]
    assert losses == seen
    assert [sum(losses[:3]) / 3, sum(losses[3:]) / 3] == pytest.approx([float(row["mse"]) for row in rows], rel=1e-6)


def test_schedule_and_network_go_on_after_a_resume(tmp_path: Path) -> None:
    whole, _ = train(tmp_path / "whole", falling=True, epochs=3)
    train(tmp_path / "parts", falling=True, epochs=1)
    resumed, optimizer = train(tmp_path / "parts", falling=True, epochs=3)
    assert torch.equal(resumed.shift, whole.shift)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0125)

# SPDX-License-Identifier: Apache-2.0
"""A training that fails stops in the step in which it does, and leaves what was sound."""

from __future__ import annotations

import math
import multiprocessing
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.checks import InputError
from common.data import PairSampler
from common.engine import PrepareRegistrationBatch, RegistrationInferer, TrainingHandlers, registered
from common.losses import RegistrationLoss, Term
from common.metrics.handlers import RegistrationMetrics

CPU = torch.device("cpu")
STEPS = 3
ON = ["ddf", "poison"]


class Pairs(Dataset):
    """Three pairs per epoch; from its item ``bad`` on (counted over epochs) each has ``poison`` for the loss."""

    def __init__(self, poison: float = 0.0, bad: int = 0) -> None:
        self.poison, self.bad, self.given = poison, bad, 0

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, pair: Any) -> dict[str, Any]:
        self.given += 1
        poison = torch.tensor(self.poison if self.given == self.bad else 0.0)
        images = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(pair[0]))
        ids = {"moving_id": f"m{self.given}", "fixed_id": f"f{self.given}"}
        return {"moving": images[0], "fixed": images[1], "poison": poison, **ids}


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(2))

    def forward(self, image: Tensor, details: Any = False) -> Any:
        ddf = self.shift[None, :, None, None].expand(len(image), 2, *image.shape[2:])
        return {"ddf": ddf} if details else ddf


class Distance(nn.Module):
    """Adds the poison to the loss, whose gradient stays what it is."""

    def forward(self, ddf: Tensor, poison: Tensor) -> Tensor:
        return 3 * ddf.square().mean() + poison.mean()


class Product(nn.Module):
    """A loss and a gradient as large as the poison."""

    def forward(self, ddf: Tensor, poison: Tensor) -> Tensor:
        return (ddf * poison.sum()).mean()


class Root(nn.Module):
    """The root of 0, whose derivative is infinite, where the poison is 1."""

    def forward(self, ddf: Tensor, poison: Tensor) -> Tensor:
        return ((1 - poison.sum()) * ddf).square().sum().sqrt()


def trainer(
    folder: Path, data: Pairs, loss: nn.Module | None = None, rate: float = 0.1, batch_size: int = 1, **options: Any
) -> Any:
    network = Shift()
    wrapped = nn.parallel.DistributedDataParallel(network) if dist.is_initialized() else network
    optimizer = torch.optim.SGD(network.parameters(), lr=rate)
    total = RegistrationLoss({"mse": Term(nn.MSELoss(), ["warped", "fixed"]), "odd": Term(loss or Distance(), ON)})
    parts: dict[str, Any] = {"device": CPU, "network": wrapped, "prepare_batch": PrepareRegistrationBatch()}
    evaluator = SupervisedEvaluator(
        val_data_loader=DataLoader(Pairs(), sampler=PairSampler(data)),
        inferer=RegistrationInferer(),
        key_val_metric={"dice": RegistrationMetrics([1], output_transform=registered)},
        **parts,
    )
    handlers = TrainingHandlers(folder, folder / "model.pt", network, optimizer, total, evaluator, val_interval=1)
    return SupervisedTrainer(
        max_epochs=2,
        train_data_loader=DataLoader(data, batch_size, sampler=PairSampler(data)),
        optimizer=optimizer,
        loss_function=total,
        inferer=RegistrationInferer(details=True),
        train_handlers=[handlers],
        decollate=False,
        **parts,
        **options,
    )


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_stops_in_the_step_and_keeps_what_was_sound(poison: float, tmp_path: Path) -> None:
    engine = trainer(tmp_path, Pairs(poison, bad=STEPS + 2))
    sentence = rf"epoch 2, iteration 5, at m5 to f5: the loss is not finite \(odd {poison}\)"
    with pytest.raises(InputError, match=sentence):
        engine.run()
    assert engine.state.iteration == 5
    for content in (
        torch.load(tmp_path / "model.pt", weights_only=True),
        torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"],
    ):
        assert 0 < float(content["shift"].mean()) < 1
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == STEPS
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2


def test_gradient_of_a_sound_loss(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"epoch 1, iteration 2, at m2 to f2: the gradient .* although the loss is \("):
        trainer(tmp_path, Pairs(1.0, bad=2), Root()).run()
    assert not (tmp_path / "model.pt").exists() and not (tmp_path / "checkpoint.pt").exists()


def test_update_that_overflows_in_the_last_step(tmp_path: Path) -> None:
    engine = trainer(tmp_path, Pairs(1e30, bad=2 * STEPS), Product(), rate=1e20)
    engine.optimizer.param_groups[0]["lr"] = 0.0
    last = Events.ITERATION_STARTED(once=2 * STEPS)
    engine.add_event_handler(last, lambda: engine.optimizer.param_groups[0].update(lr=1e20))
    with pytest.raises(InputError, match="epoch 2, iteration 6, .* the update has made weights that are not finite"):
        engine.run()
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=True)["shift"], torch.ones(2))


def test_steps_that_a_gradient_scaler_leaves_out_are_ordinary(tmp_path: Path) -> None:
    engine = trainer(tmp_path, Pairs())
    # The first scaled gradients overflow; each such step is left out and halves the scale.
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=1000)
    engine.amp_kwargs = {"enabled": False}
    engine.add_event_handler(Events.STARTED, lambda: vars(engine).update(amp=True, scaler=scaler))
    skipped = []
    engine.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda: skipped.append(not bool(torch.isfinite(engine.network.shift.grad).all())),
    )
    engine.run()
    assert skipped[0] and not skipped[-1]
    assert scaler.get_scale() < 3e38
    assert 0 < float(engine.network.shift.detach().mean()) < 1


def test_accumulated_steps_and_batches_of_several_pairs(tmp_path: Path) -> None:
    engine = trainer(tmp_path, Pairs(math.nan, bad=2), accumulation_steps=3)
    with pytest.raises(InputError, match="iteration 2, at m2 to f2"):
        engine.run()
    assert torch.equal(engine.network.shift.detach(), torch.ones(2))
    with pytest.raises(InputError, match="iteration 1, at m1 to f1, m2 to f2, m3 to f3: the loss"):
        trainer(tmp_path, Pairs(math.nan, bad=2), batch_size=3).run()


def _process(rank: int, port: int, folder: Path, said: Any) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        trainer(folder / str(rank), Pairs(math.nan, bad=2 if rank == 1 else 0)).run()
        said.put((rank, "went on"))
    except InputError as error:
        said.put((rank, str(error)))


def test_all_processes_stop_where_one_fails(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = multiprocessing.get_context("fork")
    said = context.Queue()
    processes = [context.Process(target=_process, args=(rank, port, tmp_path, said)) for rank in range(2)]
    for process in processes:
        process.start()
    sentences = dict(said.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert "iteration 2, at m2 to f2: the loss is not finite in another process" in sentences[0]
    assert "iteration 2, at m2 to f2: the loss is not finite (odd nan)" in sentences[1]
    # An epoch is one step of each process.
    assert 0 < float(torch.load(tmp_path / "0" / "model.pt", weights_only=True)["shift"].mean()) < 1

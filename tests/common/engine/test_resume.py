# SPDX-License-Identifier: Apache-2.0
"""Resuming inside one process; real processes are killed in tests/bundles/test_resume.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from common.checks import InputError
from common.data import PairSampler
from common.engine import ResumeHandler
from common.engine.averaging import AveragedWeights
from common.engine.schedules import schedule_handler


class Pairs(Dataset):
    """Five numbers; a pair is the difference and the sum of two, with noise that is a function of the draw."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, pair: Any) -> dict[str, Tensor]:
        moving, fixed, _, draw = pair
        noise = torch.rand(1, generator=torch.Generator().manual_seed(hash(draw) % 2**32))
        return {"image": torch.tensor([float(moving - fixed)]) + noise, "label": torch.tensor([float(moving + fixed)])}


class Killed(Exception):
    pass


class Averaging(NamedTuple):
    average: AveragedWeights
    evaluator: Any

    def attach(self, engine: Any) -> None:
        self.average.attach(engine, self.evaluator)


def run(
    path: Path,
    epochs: int = 4,
    resume: bool = False,
    kill_at: int | None = None,
    rate: float = 0.1,
    seed: int = 0,
    batch_size: int = 1,
    restarts: bool = False,
    ema_decay: float | None = None,
) -> tuple[Any, Any, Any]:
    """Train; returns network, scheduler, evaluator. ``kill_at`` raises after that iteration."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, amsgrad=True)
    scheduler: Any = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    if restarts:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=1, T_mult=2)
    data = Pairs()
    evaluator = SupervisedEvaluator(torch.device("cpu"), DataLoader(data, sampler=PairSampler(data)), network)

    class Kill:
        def attach(self, engine: Any) -> None:
            from ignite.engine import Events

            @engine.on(Events.ITERATION_COMPLETED)
            def maybe(engine: Any) -> None:
                if engine.state.iteration == kill_at:
                    raise Killed

    average = None if ema_decay is None else AveragedWeights(network, ema_decay)
    handler = ResumeHandler(
        path, network, optimizer, scheduler, evaluator, resume=resume, every_seconds=0.0, average=average
    )
    averaging = [] if average is None else [Averaging(average, evaluator)]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=DataLoader(data, batch_size, sampler=PairSampler(data, seed=seed), drop_last=True),
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[*averaging, schedule_handler(scheduler), ValidationHandler(1, evaluator), handler, Kill()],
    )
    trainer.run()
    return network, scheduler, evaluator


@pytest.mark.parametrize("kill_at", [1, 4, 5, 8, 10, 19])
def test_network_and_scheduler_go_on_where_they_were(kill_at: int, tmp_path: Path) -> None:
    whole, whole_scheduler, _ = run(tmp_path / "whole.pt")
    with pytest.raises(Killed):
        run(tmp_path / "killed.pt", kill_at=kill_at)
    resumed, scheduler, _ = run(tmp_path / "killed.pt", resume=True)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert scheduler.get_last_lr() == whole_scheduler.get_last_lr() == [0.1 * 0.5**4]


@pytest.mark.parametrize("kill_at", [1, 5, 6, 8])
def test_schedule_by_updates_goes_on_in_the_middle_of_an_epoch(kill_at: int, tmp_path: Path) -> None:
    whole, whole_scheduler, _ = run(tmp_path / "whole.pt", restarts=True)
    with pytest.raises(Killed):
        run(tmp_path / "killed.pt", kill_at=kill_at, restarts=True)
    resumed, scheduler, _ = run(tmp_path / "killed.pt", resume=True, restarts=True)
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert scheduler.state_dict() == whole_scheduler.state_dict() and scheduler.T_cur == pytest.approx(0.8)


@pytest.mark.parametrize("kill_at", [1, 5, 8])
def test_averaged_weights_go_on_where_they_were(kill_at: int, tmp_path: Path) -> None:
    run(tmp_path / "whole.pt", ema_decay=0.8)
    with pytest.raises(Killed):
        run(tmp_path / "killed.pt", kill_at=kill_at, ema_decay=0.8)
    run(tmp_path / "killed.pt", resume=True, ema_decay=0.8)
    whole, resumed = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("whole", "killed"))
    assert torch.equal(resumed["average"]["average"]["weight"], whole["average"]["average"]["weight"])
    assert not torch.equal(whole["average"]["average"]["weight"], whole["network"]["weight"])
    with pytest.raises(InputError, match="--ema_decay 0.8, not none"):
        run(tmp_path / "killed.pt", epochs=5, resume=True)


def test_resuming_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "a.pt")
    again, _, _ = run(tmp_path / "b.pt", resume=True)
    assert torch.equal(whole.weight, again.weight)


def test_more_epochs_can_follow(tmp_path: Path) -> None:
    whole, _, _ = run(tmp_path / "a.pt", epochs=4)
    run(tmp_path / "b.pt", epochs=2)
    longer, _, _ = run(tmp_path / "b.pt", epochs=4, resume=True)
    assert torch.equal(whole.weight, longer.weight)


def test_best_metric_survives(tmp_path: Path) -> None:
    run(tmp_path / "a.pt", epochs=1)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**content, "best_metric": 0.7, "best_metric_epoch": 1}, tmp_path / "a.pt")
    _, _, evaluator = run(tmp_path / "a.pt", epochs=2, resume=True)
    assert evaluator.state.best_metric == 0.7 and evaluator.state.best_metric_epoch == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda content: {**content, "epoch_length": 7}, "7 iterations per epoch, now there are 5"),
        (lambda content: {**content, "iteration": 50}, "nothing to resume"),
        (lambda content: {**content, "network": {"weight": torch.ones(2, 2)}}, "does not fit"),
        (lambda content: {"network": content["network"]}, "no checkpoint to resume from"),
    ],
)
def test_checkpoint_of_another_run_is_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    run(tmp_path / "a.pt", epochs=1)
    torch.save(spoil(torch.load(tmp_path / "a.pt", weights_only=True)), tmp_path / "a.pt")
    with pytest.raises(InputError, match=message):
        run(tmp_path / "a.pt", epochs=2, resume=True)


def test_checkpoint_that_is_not_finite_is_not_resumed_and_not_written(tmp_path: Path) -> None:
    network, _, _ = run(tmp_path / "a.pt", epochs=1)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    content["network"]["bias"][0] = torch.nan
    torch.save(content, tmp_path / "broken.pt")
    with pytest.raises(InputError, match="broken.pt has NaN or infinite values in 1 of 2 entries"):
        run(tmp_path / "broken.pt", epochs=2, resume=True)
    before = (tmp_path / "a.pt").read_bytes()
    handler = ResumeHandler(tmp_path / "a.pt", network, torch.optim.SGD(network.parameters(), lr=1), overwrite=True)
    nn.init.constant_(network.bias, torch.inf)
    with pytest.raises(InputError, match="The network has NaN or infinite values"):
        handler._save(SupervisedTrainer.__new__(SupervisedTrainer))
    assert (tmp_path / "a.pt").read_bytes() == before


def test_settings_of_the_first_run_are_those_of_the_resumed(tmp_path: Path) -> None:
    run(tmp_path / "a.pt", epochs=1)
    with pytest.raises(
        InputError, match="a.pt was written with --learning_rate 0.1, not 0.05, --seed 0, not 7: resume"
    ):
        run(tmp_path / "a.pt", epochs=2, resume=True, rate=0.05, seed=7)
    # Five pairs make two batches of two and one batch of three or more.
    run(tmp_path / "b.pt", epochs=1, batch_size=3)
    with pytest.raises(InputError, match="--batch_size 3, not 4"):
        run(tmp_path / "b.pt", epochs=2, resume=True, batch_size=4)


def test_batch_that_no_epoch_fills_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--batch_size 6 is more than the 5 pair\(s\)"):
        run(tmp_path / "a.pt", batch_size=6)


def test_checkpoint_of_an_earlier_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path / "a.pt", epochs=1)
    with pytest.raises(InputError, match="--resume true"):
        run(tmp_path / "a.pt", epochs=1)

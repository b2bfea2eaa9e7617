# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

from common.engine import History, ProgressBar, TensorBoardHandler


class Loss:
    """Stands for a registration loss whose term is the number of its calls."""

    calls = 0

    def terms_of_last_call(self) -> dict[str, float]:
        return {"lncc": float(self.calls)}


class Evaluator(Engine):
    def __init__(self) -> None:
        super().__init__(lambda engine, batch: None)
        self.state.metrics = {"dice": 0.5}
        self.state.epoch = -1


def trainer(loss: Any, evaluator: Any) -> Engine:
    def step(engine: Engine, batch: Any) -> None:
        loss.calls += 1
        evaluator.state.epoch = engine.state.epoch if engine.state.epoch % 2 == 0 else -1
        engine.fire_event(IterationEvents.LOSS_COMPLETED)

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    return engine


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_history_has_a_row_per_epoch_with_means_and_validation(tmp_path: Path) -> None:
    loss: Any = Loss()
    evaluator: Any = Evaluator()
    engine = trainer(loss, evaluator)
    History(tmp_path / "history.csv", loss, evaluator).attach(engine)
    engine.run(range(2), max_epochs=3)
    history = rows(tmp_path / "history.csv")
    assert [float(row["lncc"]) for row in history] == [1.5, 3.5, 5.5]
    assert [row["val_dice"] for row in history] == ["", "0.5", ""]
    assert [row["iteration"] for row in history] == ["2", "4", "6"]


def test_history_means_a_term_over_the_steps_that_had_it(tmp_path: Path) -> None:
    class Partial(Loss):
        def terms_of_last_call(self) -> dict[str, float]:
            # The second step of four, and none of the second epoch, has labels.
            return {**super().terms_of_last_call(), **({"dice": 0.25 * self.calls} if self.calls in (2, 4) else {})}

    loss: Any = Partial()
    evaluator: Any = Evaluator()
    engine = trainer(loss, evaluator)
    History(tmp_path / "history.csv", loss, evaluator).attach(engine)
    engine.run(range(4), max_epochs=2)
    assert [row["dice"] for row in rows(tmp_path / "history.csv")] == ["0.75", ""]


def test_page_of_the_training_stands_beside_the_history(tmp_path: Path) -> None:
    loss: Any = Loss()
    evaluator: Any = Evaluator()
    engine = trainer(loss, evaluator)
    History(tmp_path / "history.csv", loss, evaluator, title="Training of <EOIR>").attach(engine)
    seen: list[bool] = []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append((tmp_path / "report.html").exists()))
    engine.run(range(2), max_epochs=3)
    # The first validation is that of the second epoch.
    assert seen == [False, True, True]
    page = (tmp_path / "report.html").read_text()
    assert "Training of &lt;EOIR&gt;" in page and "3 epochs, 6 iterations" in page
    assert "Loss lncc" in page and "best validation, epoch 2" in page


def test_resumed_history_repeats_no_row(tmp_path: Path) -> None:
    loss: Any = Loss()
    evaluator: Any = Evaluator()
    engine = trainer(loss, evaluator)
    History(tmp_path / "history.csv", loss, evaluator).attach(engine)
    engine.run(range(2), max_epochs=3)
    resumed = trainer(loss, evaluator)
    History(tmp_path / "history.csv", loss, evaluator).attach(resumed)
    resumed.load_state_dict({"iteration": 4, "epoch_length": 2, "max_epochs": 3, "term_sums": {}})
    resumed.run(range(2), max_epochs=3)
    history = rows(tmp_path / "history.csv")
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert float(history[2]["lncc"]) == 7.5


def test_epoch_resumed_in_its_middle_has_the_mean_of_all_of_it(tmp_path: Path) -> None:
    loss: Any = Loss()
    evaluator: Any = Evaluator()
    killed, resumed = trainer(loss, evaluator), trainer(loss, evaluator)
    saved: dict[str, Any] = {}

    def kill(engine: Engine) -> None:
        saved.update(engine.state_dict())
        raise KeyError

    for engine in (killed, resumed):
        History(tmp_path / "history.csv", loss, evaluator).attach(engine)
    killed.add_event_handler(Events.ITERATION_COMPLETED(once=3), kill)
    with pytest.raises(KeyError):
        killed.run(range(4), max_epochs=1)
    resumed.load_state_dict(saved)
    resumed.run(range(4), max_epochs=1)
    assert [float(row["lncc"]) for row in rows(tmp_path / "history.csv")] == [(1 + 2 + 3 + 4) / 4]


def test_bar_counts_the_whole_run_and_shows_terms(capfd: pytest.CaptureFixture[str]) -> None:
    loss: Any = Loss()
    evaluator: Any = Evaluator()
    engine = trainer(loss, evaluator)
    ProgressBar("training", loss).attach(engine)
    engine.run(range(2), max_epochs=3)
    shown = capfd.readouterr().err
    assert "6/6" in shown and "training" in shown


def test_bar_does_not_swallow_errors() -> None:
    def fail(engine: Engine, batch: Any) -> None:
        raise KeyError("broken")

    engine = Engine(fail)
    ProgressBar("training").attach(engine)
    with pytest.raises(KeyError, match="broken"):
        engine.run(range(2))


def test_tensorboard_gets_terms_metrics_and_a_picture(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    image = torch.rand(1, 9, 8, 7)
    pair = {"moving": image, "fixed": image, "moving_id": "m", "fixed_id": "f"}
    evaluator: Any = Engine(lambda engine, batch: [{"label": pair, "pred": {"ddf": torch.zeros(3, 9, 8, 7)}}])
    evaluator.add_event_handler(Events.EPOCH_STARTED, lambda engine: engine.state.metrics.update(dice=0.5))
    loss: Any = Loss()
    engine = trainer(loss, Evaluator())
    TensorBoardHandler(tmp_path, loss, evaluator).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _: evaluator.run([0]))
    engine.run(range(2), max_epochs=2)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [scalar.value for scalar in events.Scalars("loss/lncc")] == [1, 2, 3, 4]
    assert [(scalar.step, scalar.value) for scalar in events.Scalars("validation/dice")] == [(2, 0.5), (4, 0.5)]
    assert [picture.step for picture in events.Images("validation pair")] == [2, 4]


def test_tensorboard_hides_an_earlier_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for steps in (4, 2):
        loss: Any = Loss()
        evaluator: Any = Evaluator()
        engine = trainer(loss, evaluator)
        TensorBoardHandler(tmp_path, loss, evaluator).attach(engine)
        engine.run(range(steps), max_epochs=1)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [scalar.step for scalar in events.Scalars("loss/lncc")] == [1, 2]

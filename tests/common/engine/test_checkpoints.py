# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine, Events
from torch import nn

from common.checks import InputError
from common.engine.checkpoints import BestModelHandler
from common.io.checkpoints import load_checkpoint, save_atomically

ROOT = Path(__file__).parents[3]


def network(width: int = 3) -> nn.Linear:
    return nn.Linear(2, width)


def test_last_weights_count_where_no_metric_can_be_compared(tmp_path: Path) -> None:
    weights = network()
    engine = Engine(lambda engine, batch: None)
    # What MONAI's evaluator makes of a key metric that is NaN from the first epoch on.
    engine.state.best_metric, engine.state.best_metric_epoch = math.nan, 1
    engine.add_event_handler(Events.EPOCH_STARTED, lambda: nn.init.constant_(weights.bias, engine.state.epoch))
    BestModelHandler(tmp_path / "model.pt", weights).attach(engine)
    engine.run([0], max_epochs=3)
    assert load_checkpoint(tmp_path / "model.pt")["bias"].tolist() == [3, 3, 3]


def test_weights_that_are_not_finite_do_not_replace_sound_ones(tmp_path: Path) -> None:
    weights = network()
    save_atomically(weights.state_dict(), tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    nn.init.constant_(weights.bias, math.nan)
    engine = Engine(lambda engine, batch: None)
    engine.state.best_metric, engine.state.best_metric_epoch = 0.5, 1
    BestModelHandler(tmp_path / "model.pt", weights, overwrite=True).attach(engine)
    with pytest.raises(InputError, match="The network has NaN or infinite values in 1 of 2 entries, the first is bias"):
        engine.run([0])
    assert (tmp_path / "model.pt").read_bytes() == before


class Malicious:
    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_existing_weights_are_not_replaced_unasked(tmp_path: Path) -> None:
    save_atomically(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="--resume true, .*--overwrite true"):
        BestModelHandler(tmp_path / "model.pt", network())
    BestModelHandler(tmp_path / "model.pt", network(), overwrite=True)


def test_resumed_training_replaces_its_own_weights_alone(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    save_atomically(network().state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="and no checkpoint .*checkpoint.pt to go on from: choose"):
        BestModelHandler(tmp_path / "model.pt", network(), resume_from=checkpoint)
    checkpoint.touch()
    BestModelHandler(tmp_path / "model.pt", network(), resume_from=checkpoint)

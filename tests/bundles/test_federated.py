# SPDX-License-Identifier: Apache-2.0
"""Federated clients as MONAI makes them: the folder of a bundle, options of its training, and nothing else."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, ModelType
from monai.fl.utils.exchange_object import ExchangeObject
from torch import Tensor

from common.cli import sentence_of
from common.data.shapes3d import generate_shapes3d

from .conftest import ROOT, RUN, few_shapes, phantom_options, tiny

ALL = "FEDERATED_ALL"
ONE = ROOT / "bundles" / "eoir_shapes3d"
others = pytest.mark.skipif(ALL not in os.environ, reason=f"minutes; {ALL}=1 has every family of networks")
FAMILIES = [ONE, *(pytest.param(bundle, marks=others) for bundle in RUN if bundle != ONE)]

pytestmark = pytest.mark.filterwarnings("ignore:executing the bundle config under:UserWarning")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Data of two hospitals, which have nothing in common: two subjects for training, two for validation."""
    folder = tmp_path_factory.mktemp("sites")
    return [
        generate_shapes3d(folder / f"site-{seed}", 4, (32, 32, 32), seed=seed, validation=2, test=0, progress=False)
        for seed in (1, 2)
    ]


def install(bundle: Path, data: Path, folder: Path) -> Path:
    """A bundle's folder as a site has it, with data where the bundle looks for them."""
    made = folder / data.name / bundle.name
    shutil.copytree(bundle / "configs", made / "configs")
    (made / "common").symlink_to(ROOT / "common")
    (made / "data").symlink_to(data)
    return made


def options_of(bundle: Path, data: Path) -> dict[str, Any]:
    small = {**tiny(bundle), **few_shapes(bundle), "pairs_per_epoch": 2, "batch_size": 1}
    return {**phantom_options(bundle, data), **small}


def client(bundle: Path, data: Path, folder: Path, **options: Any) -> MonaiAlgo:
    """As a person writes it; what is copied are the whole weights, not their differences, to compare bit by bit."""
    options = options_of(bundle, data) | options
    root = str(install(bundle, data, folder))
    made = MonaiAlgo(root, send_weight_diff=False, train_kwargs=options, eval_kwargs=options)
    made.initialize({ExtraItems.CLIENT_NAME: data.name})
    return made


def weights_of(one: MonaiAlgo) -> dict[str, Tensor]:
    # What MONAI returns are the network's own tensors, which go on changing.
    return {name: value.clone() for name, value in one.get_weights().weights.items()}


def mean(values: list[Tensor]) -> Tensor:
    # Counters of steps are not averaged.
    return torch.stack(values).mean(0) if values[0].is_floating_point() else values[0]


def are_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("bundle", FAMILIES, ids=lambda bundle: bundle.name)
def test_two_clients_train_for_two_rounds(bundle: Path, sites: list[Path], tmp_path: Path) -> None:
    clients = [client(bundle, data, tmp_path) for data in sites]
    # The seed of the run holds: all begin with the same network.
    shared = weights_of(clients[0])
    assert are_equal(shared, weights_of(clients[1]))
    rounds = []
    for _ in range(2):
        returned = []
        for one in clients:
            metrics = one.evaluate(ExchangeObject(weights=shared)).metrics
            assert metrics["fold_fraction"] >= 0
            one.train(ExchangeObject(weights=shared))
            returned.append(weights_of(one))
            # What was measured are the weights of the server, whatever the client has made of them since.
            assert one.evaluator is not None and are_equal(dict(one.evaluator.network.state_dict()), shared)
            assert not are_equal(returned[-1], shared)
        # Where shapes are drawn, no data of the sites have a part in the training.
        assert are_equal(*returned) == bool(few_shapes(bundle))
        shared = {name: mean([weights[name] for weights in returned]) for name in shared}
        rounds.append((returned, shared))
    for one, data in zip(clients, sites, strict=True):
        statistics = one.get_weights().statistics
        assert statistics["total_epochs"] == 2 and statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] > 0
        one.finalize()
        rows = csv.DictReader((tmp_path / data.name / bundle.name / "outputs/train/history.csv").open())
        assert [row["epoch"] for row in rows] == ["1", "2"]
    # The first client again, alone: its steps are those of its seed and its rounds.
    alone = client(bundle, sites[0], tmp_path / "again")
    alone.train(ExchangeObject(weights=weights_of(alone)))
    assert are_equal(weights_of(alone), rounds[0][0][0])
    best = alone.get_weights({ExtraItems.MODEL_TYPE: ModelType.BEST_MODEL})
    assert are_equal(best.weights, weights_of(alone))
    alone.train(ExchangeObject(weights=rounds[0][1]))
    assert are_equal(weights_of(alone), rounds[1][0][0])


def test_statistics_of_the_data_of_a_site(sites: list[Path], tmp_path: Path) -> None:
    counted = MonaiAlgoStats(str(install(ONE, sites[0], tmp_path)))
    counted.initialize({ExtraItems.CLIENT_NAME: "site-1", ExtraItems.APP_ROOT: ""})
    extra = {FlStatistics.HIST_BINS: 10, FlStatistics.HIST_RANGE: [0.0, 1.0]}
    statistics = counted.get_data_stats(extra).statistics
    assert {part: statistics[part][FlStatistics.DATA_COUNT] for part in ("train", "eval")} == {"train": 2, "eval": 2}
    assert statistics["train"][FlStatistics.FAIL_COUNT] == 0


def test_mistakes_of_a_site_are_named(sites: list[Path], tmp_path: Path) -> None:
    for options, sentence in (
        ({"pairs_per_epok": 2}, "There is no option --pairs_per_epok. Did you mean 'pairs_per_epoch'?"),
        ({"output_dir": "/proc/nothing"}, "Cannot write to the folder /proc/nothing"),
    ):
        with pytest.raises((RuntimeError, ValueError)) as error:
            client(ONE, sites[0], tmp_path / next(iter(options)), **options)
        assert sentence in str(sentence_of(error.value))

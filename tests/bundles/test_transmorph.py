# SPDX-License-Identifier: Apache-2.0
"""What TransMorph's bundles train with: terms, the field of the penalty, pairs, the falling rate."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.data.pair_sampler import PairSampler
from common.losses.lncc import CONVENTIONS, LNCCLoss

from .conftest import ROOT


def parser(dataset: str, **override: Any) -> ConfigParser:
    """Of a training, without what reads data."""
    file = ROOT / "bundles" / f"transmorph_{dataset}" / "configs" / "train.json"
    made = ConfigParser(json.loads(file.read_text(encoding="utf-8")))
    made.update({name.replace("__", "::"): value for name, value in override.items()})
    return made


@pytest.mark.parametrize(("dataset", "dice"), [("oasis", True), ("ixi", False), ("lumir", False)])
def test_terms_weigh_alike_and_the_penalty_looks_at_the_published_field(dataset: str, dice: bool) -> None:
    loss = parser(dataset).get_parsed_content("loss")
    assert loss.padding_mode == "zeros"
    assert {name: term.weight for name, term in loss.terms.items()} == dict.fromkeys(
        ["lncc", "smoothness", *(["dice"] if dice else [])], 1
    )
    given, published = loss.terms["lncc"].losses[0], LNCCLoss(**CONVENTIONS["official"])
    for name in ("statistics", "offset", "guard", "eps", "kernel_size"):
        assert getattr(given, name) == getattr(published, name)
    assert list(loss.terms["smoothness"].on) == ["flow"]
    assert not dice or loss.terms["dice"].losses[0].num_classes == 36


def test_labels_can_be_left_out() -> None:
    assert set(parser("oasis", supervised=False).get_parsed_content("loss").terms) == {"lncc", "smoothness"}


@pytest.mark.parametrize("dataset", ["oasis", "lumir"])
def test_each_pair_goes_there_and_back(dataset: str) -> None:
    config = parser(dataset)["train"]["dataloader"]["sampler"]
    arguments = {name: value for name, value in config.items() if not isinstance(value, str) or value[0] not in "@$"}
    del arguments["_target_"]
    pairs = [(pair.moving, pair.fixed) for pair in PairSampler([None] * 9, pairs=None, **arguments)]
    assert len(pairs) == 18 and pairs[1::2] == [(fixed, moving) for moving, fixed in pairs[::2]]


@pytest.mark.parametrize("dataset", ["oasis", "ixi", "lumir"])
def test_the_rate_falls_as_published(dataset: str) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    made = parser(dataset, optimizer__params=[weight])
    scheduler = made.get_parsed_content("lr_scheduler")
    # The optimiser and its schedule are those of one parser.
    optimizer, rates = made.get_parsed_content("optimizer"), []
    for _ in range(3):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # The scheduler multiplies the first rate by a factor: a few float64 roundings of 1e-20.
    assert rates == pytest.approx([round(1e-4 * (1 - epoch / 500) ** 0.9, 8) for epoch in range(3)], abs=1e-18)
    assert optimizer.param_groups[0]["amsgrad"] and optimizer.param_groups[0]["weight_decay"] == 0

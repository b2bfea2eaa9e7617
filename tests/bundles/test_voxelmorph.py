# SPDX-License-Identifier: Apache-2.0
"""What VoxelMorph's bundles make of their options, and which pairs they train with."""

from __future__ import annotations

import json
from typing import Any

import pytest
from monai.bundle import ConfigParser

from common.data.pair_sampler import PairSampler
from common.losses.lncc import CONVENTIONS, LNCCLoss

from .conftest import ROOT


def parser(dataset: str, **override: Any) -> ConfigParser:
    """Of a training, without what reads data."""
    file = ROOT / "bundles" / f"voxelmorph_{dataset}" / "configs" / "train.json"
    made = ConfigParser(json.loads(file.read_text(encoding="utf-8")))
    made.update({name.replace("__", "::"): value for name, value in override.items()})
    return made


@pytest.mark.parametrize(("dataset", "convention"), [("oasis", "mmipt"), ("lpba40", "mmipt"), ("ixi", "official")])
def test_correlation_has_the_published_convention(dataset: str, convention: str) -> None:
    given, published = (
        parser(dataset).get_parsed_content("loss::terms::lncc::loss"),
        LNCCLoss(**CONVENTIONS[convention]),
    )
    for name in ("statistics", "offset", "guard", "eps", "kernel_size"):
        assert getattr(given, name) == getattr(published, name)


@pytest.mark.parametrize("supervised", [False, True])
def test_labels_count_where_they_are_asked_for(supervised: bool) -> None:
    terms = parser("oasis", supervised=supervised).get_parsed_content("loss").terms
    assert set(terms) == {"lncc", "smoothness", *(["dice"] if supervised else [])}
    assert not supervised or terms["dice"].losses[0].num_classes == 36


@pytest.mark.parametrize(
    ("options", "weight"), [({}, 1), ({"int_steps": 7}, 2), ({"int_steps": 7, "int_downsize": 4}, 4)]
)
def test_penalty_of_a_velocity_counts_by_the_coarseness_of_its_grid(options: dict[str, int], weight: int) -> None:
    made = parser("lumir", **{f"network_def__{name}": value for name, value in options.items()})
    assert made.get_parsed_content("loss").terms["smoothness"].weight == weight


def sampler(dataset: str, pairs: list[tuple[int, int]] | None) -> PairSampler:
    config = parser(dataset)["train"]["dataloader"]["sampler"]
    arguments = {name: value for name, value in config.items() if not isinstance(value, str) or value[0] not in "@$"}
    del arguments["_target_"]
    return PairSampler([None] * 9, pairs=pairs, **arguments)


@pytest.mark.parametrize("dataset", ["ixi", "lpba40"])
@pytest.mark.parametrize("pairs", [None, [(0, scan) for scan in range(1, 9)]])
def test_the_atlas_moves_to_each_scan_once_and_pairs_are_mirrored(
    dataset: str, pairs: list[tuple[int, int]] | None
) -> None:
    drawn = list(sampler(dataset, pairs))
    assert sorted((pair.moving, pair.fixed) for pair in drawn) == [(0, scan) for scan in range(1, 9)]
    assert {axis for pair in drawn for axis in pair.flips} == {0, 1, 2}


def test_on_lumir_each_pair_goes_there_and_back_and_on_oasis_once() -> None:
    pairs = [(pair.moving, pair.fixed) for pair in sampler("lumir", None)]
    assert len(pairs) == 18 and pairs[1::2] == [(fixed, moving) for moving, fixed in pairs[::2]]
    assert sorted(pair.moving for pair in sampler("oasis", None)) == [*range(9)]

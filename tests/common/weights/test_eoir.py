# SPDX-License-Identifier: Apache-2.0
"""EOIR's official checkpoints: every entry has one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.networks import EOIR
from common.weights.eoir import KEY_MAP, OASIS_KEY_MAP, describe_official
from common.weights.eoir import official_entries as eoir_official_entries
from common.weights.state_dicts import rename_keys

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "eoir"


def official_entries(case: str) -> list[Any]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries: list[Any] = json.loads(str(file["meta"]))["state_dict"]
    return entries


@pytest.mark.parametrize(
    ("case", "arguments"),
    [
        ("plain_c4", {}),
        ("plain_noint_cv2_c3", {"start_channel": 3, "search_radius": 2}),
        ("acdc_batch2_c4", {"variant": "acdc"}),
        ("oasis_c4", {"variant": "oasis"}),
        ("oasis_int_lk3_c4", {"variant": "oasis", "kernel_size": 3}),
    ],
)
def test_official_weights_fill_the_network_completely_and_each_in_one_place(
    case: str, arguments: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    official = {name: torch.randn(shape, generator=generator) for name, shape, _ in official_entries(case)}
    for level in range(5):
        official[f"transformers.{level}.grid"] = torch.zeros(1, 3, 2, 2, 2)
        official[f"integrates.{level}.transformer.grid"] = torch.zeros(1, 3, 2, 2, 2)
    variant = arguments.get("variant", "plain")
    key_map = OASIS_KEY_MAP if variant == "oasis" else KEY_MAP
    net = EOIR(**{"start_channel": 4, **arguments})
    net.load_state_dict(rename_keys(official, key_map))
    loaded = net.state_dict()
    dropped = []
    for name, value in official.items():
        (ours,) = rename_keys({name: None}, key_map) or (None,)
        if ours is None:
            dropped.append(name)
        else:
            assert torch.equal(loaded[ours], value), name
    assert len(loaded) + len(dropped) == len(official)
    unused = "disp_warp_4." if variant == "oasis" else "none"
    assert all(name.endswith("grid") or name.startswith(unused) for name in dropped)


@pytest.mark.parametrize(
    "case", ["plain_c4", "plain_noint_cv2_c3", "acdc_batch2_c4", "oasis_c4", "oasis_int_lk3_c4", "wide_oasis_c32"]
)
def test_official_entries_are_those_of_the_published_networks_in_their_order(case: str) -> None:
    stored = official_entries(case)
    state = {name: torch.empty(shape) for name, shape, _ in stored}
    weights = describe_official(state, None if "oasis" in case else case.split("_")[0])
    assert [(name, list(shape)) for name, shape in eoir_official_entries(weights.arguments)] == [
        (name, shape) for name, shape, _ in stored
    ]
    assert weights.arguments["start_channel"] == int(case[-2:].strip("c")) and weights.size is None


def test_key_map_of_the_plain_network_keeps_the_fifth_estimator() -> None:
    assert list(rename_keys({"disp_warp_4.get_flow.bias": 0}, KEY_MAP)) == ["estimators.4.flow.bias"]
    assert not rename_keys({"disp_warp_4.get_flow.bias": 0}, OASIS_KEY_MAP)


def test_default_network_has_the_shapes_of_the_published_lumir_weights() -> None:
    official = {name: torch.empty(shape) for name, shape, _ in official_entries("wide_plain_c32")}
    renamed = rename_keys(official, KEY_MAP)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in EOIR().state_dict().items()}

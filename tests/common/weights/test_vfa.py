# SPDX-License-Identifier: Apache-2.0
"""VFA's official checkpoints: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.networks import VFA
from common.weights.family import to_official, to_ours
from common.weights.vfa import FAMILY

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "vfa"
PUBLISHED: dict[str, Any] = {
    "spatial_dims": 3,
    "downsamples": 4,
    "start_channels": 8,
    "matching_channels": 8,
    "max_channels": 64,
}
CASES: dict[str, dict[str, Any]] = {
    "published": PUBLISHED,
    "small_2d": {**PUBLISHED, "spatial_dims": 2, "downsamples": 3, "start_channels": 4, "matching_channels": 4},
    "batch2_masks": {**PUBLISHED, "downsamples": 2, "start_channels": 4, "matching_channels": 6},
}


def official(case: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in entries}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    ours = to_ours(FAMILY, state, found.arguments)
    net = VFA(**found.arguments)
    net.load_state_dict(ours)
    assert FAMILY.describe_ours(net.state_dict(), net.arguments) == found
    back = to_official(FAMILY, net.state_dict(), found.arguments, None)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_levels_and_layers_lie_where_they_should() -> None:
    state = official("published")
    ours = to_ours(FAMILY, state, PUBLISHED)
    for name, place in {
        "encoder.encoder_conv.0.conv2.weight": "encoder.down.0.1.conv.weight",
        "encoder.decoder_conv.3.norm1.bias": "encoder.up.3.0.norm.bias",
        "encoder.upsampling.1.norm.weight": "encoder.enlarge.1.norm.weight",
        "encoder.bottleneck_conv.conv1.bias": "encoder.bottom.0.conv.bias",
        "decoder.project.4.weight": "attention.4.project.weight",
        "decoder.beta": "beta",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_bound_of_the_channels_shows_where_it_is_met() -> None:
    arguments = {**PUBLISHED, "start_channels": 2, "max_channels": 8, "matching_channels": 2}
    state = to_official(FAMILY, VFA(**arguments).state_dict(), arguments, None)
    assert FAMILY.describe_official(state, None).arguments == arguments


def test_what_is_no_checkpoint_of_vfa_or_of_a_variant_is_refused() -> None:
    with pytest.raises(InputError, match=r"no checkpoint of VFA: encoder\.in_conv\.weight is missing"):
        FAMILY.describe_official({"simple_encoder.0.layer.0.weight": torch.zeros(1)}, None)
    state = official("batch2_masks")
    with pytest.raises(InputError, match="no variant oasis"):
        FAMILY.describe_official(state, "oasis")
    del state["encoder.decoder_conv.0.norm1.bias"]
    with pytest.raises(InputError, match=r"missing encoder\.decoder_conv\.0\.norm1\.bias"):
        to_ours(FAMILY, state, CASES["batch2_masks"])

# SPDX-License-Identifier: Apache-2.0
"""NePhi's official checkpoints: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.networks import NePhi
from common.weights.family import to_official, to_ours
from common.weights.nephi import FAMILY
from common.weights.state_dicts import pack_state_dict, unpack_state_dict

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "nephi"
PUBLISHED: dict[str, Any] = {
    "spatial_dims": 3,
    "channels": [8, 16, 32, 64, 128, 256],
    "local_level": 2,
    "latent": 32,
    "hidden": 128,
    "layers": 2,
    "frequencies": 128,
    "pairs": None,
}
SMALL = {**PUBLISHED, "local_level": 1, "latent": 4, "hidden": 16, "frequencies": 8}
TABLE = {name: value for name, value in SMALL.items() if name not in ("channels", "local_level")}
# What the weights tell, and what the bundle has to.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "published_175": (PUBLISHED, {"size": [175, 175, 175]}),
    "loss_3d": ({**SMALL, "channels": [4, 6, 8]}, {"size": [24, 20, 28]}),
    "loss_2d_b2": ({**SMALL, "spatial_dims": 2, "channels": [4, 6, 8, 8]}, {"size": [32, 24]}),
    "autodecoder_2d": (
        {**TABLE, "spatial_dims": 2, "pairs": 5},
        {"size": [12, 10], "channels": [1], "local_level": 0},
    ),
}


def official(case: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) if kind == "float32" else torch.tensor(7)
        for name, shape, kind in entries
    }


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state, (told, tied) = official(case), CASES[case]
    found = FAMILY.describe_official(state, None)
    assert found.arguments == told and found.size is None
    arguments = {**found.arguments, **tied}
    ours = to_ours(FAMILY, state, arguments)
    net = NePhi(**arguments)
    net.load_state_dict(ours)
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == net.arguments
    back = to_official(FAMILY, net.state_dict(), arguments, None)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())


@pytest.mark.parametrize("case", ["loss_3d", "autodecoder_2d"])
def test_files_hold_each_part_by_itself_or_the_whole(case: str) -> None:
    state = official(case)
    content = pack_state_dict(state, FAMILY.container, FAMILY.parts)
    assert set(content) == ({"net"} if case == "autodecoder_2d" else {"encoder", "phi", "phi_inv"})
    unpacked = unpack_state_dict({**content, "epochs": 3}, "net", FAMILY.container, FAMILY.parts)
    assert list(unpacked) == list(state) and all(torch.equal(unpacked[name], state[name]) for name in state)


def test_layers_lie_where_they_should() -> None:
    state, (told, tied) = official("published_175"), CASES["published_175"]
    ours = to_ours(FAMILY, state, {**told, **tied})
    for name, place in {
        "encoder.local_encoder.bn.weight": "codes.local.norm.weight",
        "encoder.feature_encoder.3.conv.bias": "codes.trunk.3.conv.bias",
        "encoder.global_encoder.1.fc.weight": "codes.hidden.weight",
        "phi.embed.B": "field.frequencies",
        "phi.synthesis_nw.final_layer.weight": "field.head.weight",
        "phi.synthesis_nw.hidden_layer_1.linear.weight": "field.synthesis.hidden.1.weight",
        "phi_inv.modulation_nw.layer_0.linear.bias": "inverse_field.modulation.hidden.0.bias",
        "phi_inv.modulation_nw.first_layer.linear.weight": "inverse_field.modulation.first.weight",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_weights_of_another_size_are_refused() -> None:
    state, (told, _) = official("loss_3d"), CASES["loss_3d"]
    with pytest.raises(InputError, match=r"encoder\.global_encoder\.1\.fc\.weight is .256, 288. instead of .256, 512."):
        to_ours(FAMILY, state, {**told, "size": [32, 32, 32]})


def test_what_is_no_checkpoint_of_nephi_or_of_a_variant_is_refused() -> None:
    with pytest.raises(InputError, match=r"no checkpoint of NePhi: phi\.embed\.B is missing"):
        FAMILY.describe_official({"encoder.in_conv.weight": torch.zeros(1)}, None)
    with pytest.raises(InputError, match=r"field\.frequencies is missing"):
        FAMILY.describe_ours({"encoder.in_conv.weight": torch.zeros(1)}, {})
    state = official("loss_3d")
    with pytest.raises(InputError, match="no variant lung"):
        FAMILY.describe_official(state, "lung")
    fields = {name: value for name, value in state.items() if not name.startswith("encoder.")}
    with pytest.raises(InputError, match="neither its encoder nor a table of codes"):
        FAMILY.describe_official(fields, None)

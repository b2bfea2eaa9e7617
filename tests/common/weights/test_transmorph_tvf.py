# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TransMorphTVF: every entry has one place, and comes back from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from common.checks import InputError
from common.networks import TransMorphTVF
from common.weights.family import to_official, to_ours
from common.weights.transmorph_tvf import FAMILY

from .conftest import transmorph_entries

SMALL: dict[str, Any] = {"spatial_dims": 3, "embed_dim": 12, "head_channels": 8}
CASES: dict[str, dict[str, Any]] = {
    "tvf_oasis": {
        **SMALL,
        "variant": "oasis",
        "depths": [2] * 4,
        "heads": [2, 2, 4, 4],
        "window": [2, 3, 2],
        "time_steps": 3,
    },
    "tvf_lumir": {
        **SMALL,
        "variant": "lumir",
        "depths": [2] * 3,
        "heads": [2, 2, 4],
        "window": [2, 3, 3],
        "time_steps": 3,
    },
}
SIZE = (32, 64, 96)


def official(case: str) -> dict[str, torch.Tensor]:
    return transmorph_entries(case, CASES[case]["window"])


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    ours = to_ours(FAMILY, state, found.arguments)
    net = TransMorphTVF(**found.arguments)
    net.load_state_dict(ours)
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == net.arguments
    back = to_official(FAMILY, net.state_dict(), found.arguments, SIZE)
    unused = {name for name in state if name.startswith("reg_head.")}
    assert len(unused) == (2 if case == "tvf_lumir" else 0) and not any(back[name].any() for name in unused)
    assert all(torch.equal(back[name], value) for name, value in state.items() if name not in unused)
    grids = {name: tuple(value.shape[2:]) for name, value in back.items() if name not in state}
    halves = {"spatial_trans.grid": SIZE, "spatial_trans_.grid": (16, 32, 48)} if case == "tvf_lumir" else {}
    assert grids == halves
    names = [name for name in back if not FAMILY.is_constant(name)]
    assert names == [name for name in state if not FAMILY.is_constant(name)]


def test_steps_lie_where_they_should() -> None:
    state = official("tvf_lumir")
    ours = to_ours(FAMILY, state, CASES["tvf_lumir"])
    for name, place in {
        "cs.2.1.running_var": "steps.2.of_images.norm.running_var",
        "up3s.1.conv2.0.weight": "steps.1.second.conv.weight",
        "reg_heads.0.0.bias": "steps.0.head.conv.bias",
        "c1.1.weight": "unet.of_images.0.norm.weight",
        "up2.conv1.0.weight": "unet.up.2.first.conv.weight",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_what_is_no_checkpoint_of_it_is_refused() -> None:
    state = official("tvf_oasis")
    with pytest.raises(InputError, match="leave --variant lumir out"):
        FAMILY.describe_official(state, "lumir")
    del state["reg_heads.0.0.weight"]
    with pytest.raises(InputError, match=r"no checkpoint of TransMorphTVF: reg_heads\.0\.0\.weight is missing"):
        FAMILY.describe_official(state, None)

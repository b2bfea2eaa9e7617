# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TransMorph: every entry has one place, and comes back from it; all forms have the published sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.networks import TransMorph
from common.networks.transmorph import CONFIGURATIONS
from common.weights.family import to_official, to_ours
from common.weights.swin_unet import position_index, window_of
from common.weights.transmorph import FAMILY

from .conftest import transmorph_entries

ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 3,
    "embed_dim": 12,
    "depths": [2] * 4,
    "heads": [2, 2, 4, 4],
    "window": [2, 3, 2],
    "output_resolution": "full",
    "align_corners": True,
    "head_channels": 8,
    "qkv_bias": False,
    "conv_skip": True,
    "trans_skip": True,
}
CASES: dict[str, dict[str, Any]] = {
    "ixi_small": ARGUMENTS,
    "oasis_small": {**ARGUMENTS, "output_resolution": "half", "align_corners": False},
    "ixi_noconvskip": {**ARGUMENTS, "embed_dim": 8, "heads": [2] * 4, "window": [2, 2, 3], "conv_skip": False},
}
SIZE = (32, 64, 96)


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = transmorph_entries(case, CASES[case]["window"])
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    net = TransMorph(**found.arguments)
    net.load_state_dict(to_ours(FAMILY, state, found.arguments))
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == net.arguments
    back = to_official(FAMILY, net.state_dict(), found.arguments, SIZE)
    # What the published network holds and does not use comes back as zeros.
    unused = {name for name in state if not torch.equal(back[name], state[name])}
    dropped = {"ixi_small": set(), "oasis_small": {"c2.0.weight"}, "ixi_noconvskip": {"c1.0.weight", "c2.0.weight"}}
    assert unused == dropped[case] and not any(back[name].any() for name in unused)
    assert FAMILY.describe_official(back, None).size == SIZE


def bayes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network in the layout of TransMorph-Bayes."""
    heads = {name: value for name, value in state.items() if name.startswith("reg_head.")}
    unused = {name.replace("reg", "sigma"): value[:1] for name, value in heads.items()}
    unused |= {name: torch.ones_like(value) for name, value in heads.items()}
    return {f"net.{name}": value for name, value in {**state, **unused}.items()} | heads


def test_of_bayes_the_outer_head_counts() -> None:
    state = transmorph_entries("ixi_small", ARGUMENTS["window"])
    found = FAMILY.describe_official(bayes(state), None)
    assert found.arguments == {**ARGUMENTS, "dropout": 0.15}
    ours = to_ours(FAMILY, bayes(state), found.arguments)
    expected = to_ours(FAMILY, state, ARGUMENTS)
    assert list(ours) == list(expected) and all(torch.equal(ours[name], expected[name]) for name in ours)
    back = to_official(FAMILY, ours, found.arguments, SIZE)
    assert set(back) == {*bayes(state), "spatial_trans.grid"}
    unused = {name for name in back if name.startswith(("net.reg_head", "net.sigma_head"))}
    assert len(unused) == 4 and not any(back[name].any() for name in unused)
    assert all(torch.equal(back[name], value) for name, value in bayes(state).items() if name not in unused)


@pytest.mark.parametrize("window", [(2, 3, 4), (1, 1, 2), (5, 6, 7), (3, 2), (4, 4)])
def test_windows_are_told_by_their_indices(window: tuple[int, ...]) -> None:
    patch = torch.zeros(4, 2, *[4] * len(window))
    state = {
        "transformer.patch_embed.proj.weight": patch,
        "a.attn.relative_position_index": position_index(window),
    }
    assert window_of(state) == {"window": [*window]}
    with pytest.raises(InputError, match="not the index of any window"):
        window_of({**state, "a.attn.relative_position_index": position_index(window).flip(0)})
    with pytest.raises(InputError, match="windows of several sizes"):
        window_of({**state, "b.attn.relative_position_index": position_index([n + 1 for n in window])})


COUNTS = {
    "ixi": 46_771_251,
    "oasis": 46_556_979,
    "large": 107_949_923,
    "small": 11_757_195,
    "published_tiny": 244_527,
    "no_conv_skip": 46_702_131,
    "no_trans_skip": 41_545_779,
    "no_skip": 41_476_659,
    "bayes": 46_772_983,
}


@pytest.mark.parametrize("name", COUNTS)
def test_published_checkpoints_hold_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"):
        arguments = TransMorph(**CONFIGURATIONS[name]).arguments
    assert sum(math.prod(shape) for _, shape in FAMILY.entries(arguments)) == COUNTS[name]


def test_what_is_no_checkpoint_of_it_is_refused() -> None:
    state = transmorph_entries("ixi_small", ARGUMENTS["window"])
    with pytest.raises(InputError, match="leave --variant oasis out"):
        FAMILY.describe_official(state, "oasis")
    with pytest.raises(InputError, match=r"unknown net\.other"):
        to_ours(FAMILY, {**state, "net.other": torch.zeros(1)}, ARGUMENTS)
    del state["reg_head.0.weight"]
    with pytest.raises(InputError, match=r"no checkpoint of TransMorph: reg_head\.0\.weight is missing"):
        FAMILY.describe_official(state, None)

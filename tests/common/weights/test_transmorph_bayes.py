# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TransMorph-Bayes, which hold a network with a head of its own and beside it the head that counts."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.networks import TransMorph
from common.networks.transmorph import CONFIGURATIONS
from common.weights.family import to_official, to_ours
from common.weights.transmorph import FAMILY

from .conftest import transmorph_entries


def plain() -> dict[str, Tensor]:
    return transmorph_entries("ixi_small", (2, 3, 2))


def bayes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network in the layout of TransMorph-Bayes."""
    heads = {name: value for name, value in state.items() if name.startswith("reg_head.")}
    unused = {name.replace("reg", "sigma"): value[:1] for name, value in heads.items()}
    unused |= {name: torch.ones_like(value) for name, value in heads.items()}
    return {f"net.{name}": value for name, value in {**state, **unused}.items()} | heads


def test_the_outer_head_counts_and_all_else_is_that_of_the_part() -> None:
    told = FAMILY.describe_official(plain(), None).arguments
    found = FAMILY.describe_official(bayes(plain()), None).arguments
    assert found == {**told, "dropout": 0.15}
    ours, expected = to_ours(FAMILY, bayes(plain()), found), to_ours(FAMILY, plain(), told)
    assert list(ours) == list(expected) and all(torch.equal(ours[name], expected[name]) for name in ours)
    back = to_official(FAMILY, ours, found, (32, 64, 96))
    assert set(back) == {*bayes(plain()), "spatial_trans.grid"}
    unused = {name for name in back if name.startswith(("net.reg_head", "net.sigma_head"))}
    assert len(unused) == 4 and not any(back[name].any() for name in unused)
    assert all(torch.equal(back[name], value) for name, value in bayes(plain()).items() if name not in unused)


def test_there_are_as_many_parameters_as_published() -> None:
    with torch.device("meta"):
        arguments = TransMorph(**CONFIGURATIONS["bayes"]).arguments
    assert sum(prod(shape) for _, shape in FAMILY.entries(arguments)) == 46_772_983


def test_what_else_a_file_holds_is_refused() -> None:
    state = {**bayes(plain()), "net.other": torch.zeros(1)}
    with pytest.raises(InputError, match=r"unknown net\.other"):
        to_ours(FAMILY, state, FAMILY.describe_official(state, None).arguments)

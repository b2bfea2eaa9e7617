# SPDX-License-Identifier: Apache-2.0
"""Weights of the first of two networks: a file of its own, or part of one of both."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.checks import InputError
from common.engine import load_pre_alignment, save_atomically


def test_weights_are_those_of_the_own_file_or_else_of_the_part(tmp_path: Path) -> None:
    own, part, second = (nn.Linear(2, 3) for _ in range(3))
    save_atomically(own.state_dict(), tmp_path / "own.pt")
    both = {
        f"{name}.{key}": value
        for name, net in (("first", part), ("second", second))
        for key, value in net.state_dict().items()
    }
    save_atomically(both, tmp_path / "both.pt")
    network = nn.Linear(2, 3)
    assert load_pre_alignment(network, tmp_path / "own.pt", tmp_path / "both.pt") is network
    assert torch.equal(network.weight, own.weight)
    load_pre_alignment(network, None, tmp_path / "both.pt")
    assert torch.equal(network.weight, part.weight)


def test_without_weights_it_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights at .*both\.pt, .*--pre_ckpt_path FILE; .*--ckpt_path FILE"):
        load_pre_alignment(nn.Linear(2, 3), None, tmp_path / "both.pt")
    save_atomically(nn.Linear(2, 3).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other\.pt does not fit the network: missing weight; missing bias"):
        load_pre_alignment(nn.Linear(2, 3), None, tmp_path / "other.pt")

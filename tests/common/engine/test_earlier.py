# SPDX-License-Identifier: Apache-2.0
"""A training begins with what an earlier one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.checks import InputError
from common.engine.earlier import start_from
from common.engine.settings import optimizer_settings
from common.io.checkpoints import save_atomically


def trained(path: Path, optimizer: Any = torch.optim.Adam, **options: Any) -> dict[str, Any]:
    """A checkpoint after two steps."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    made = optimizer(network.parameters(), lr=0.1, **options)
    for _ in range(2):
        network(torch.ones(1, 3)).square().sum().backward()
        made.step()
    content = {
        "network": network.state_dict(),
        "optimizer": made.state_dict(),
        "settings": {"optimizer": optimizer_settings(made)},
    }
    save_atomically(content, path / "checkpoint.pt")
    save_atomically(content["network"], path / "model.pt")
    return content


def fresh(**options: Any) -> tuple[nn.Module, torch.optim.Adam]:
    network = nn.Linear(3, 2)
    return network, torch.optim.Adam(network.parameters(), lr=0.02, **options)


def test_a_checkpoint_gives_weights_and_moments_but_no_learning_rate(tmp_path: Path) -> None:
    content = trained(tmp_path)
    network, optimizer = fresh()
    start_from(tmp_path / "checkpoint.pt", network, optimizer)
    assert all(torch.equal(value, content["network"][name]) for name, value in network.state_dict().items())
    assert optimizer.param_groups[0]["lr"] == 0.02
    for number, parameter in enumerate(network.parameters()):
        state = optimizer.state[parameter]
        assert state["step"] == 2 and torch.equal(state["exp_avg"], content["optimizer"]["state"][number]["exp_avg"])


def test_weights_alone_begin_with_new_moments(tmp_path: Path) -> None:
    content = trained(tmp_path)
    network, optimizer = fresh()
    start_from(tmp_path / "model.pt", network, optimizer)
    assert torch.equal(network.state_dict()["weight"], content["network"]["weight"]) and not optimizer.state


def test_moments_of_another_optimiser_are_refused(tmp_path: Path) -> None:
    trained(tmp_path, torch.optim.SGD, momentum=0.9)
    with pytest.raises(InputError, match="moments of another optimiser .* SGD, not Adam.: .*give the weights alone"):
        start_from(tmp_path / "checkpoint.pt", *fresh())
    trained(tmp_path)
    with pytest.raises(InputError, match="moments of another optimiser .*amsgrad False, not True"):
        start_from(tmp_path / "checkpoint.pt", *fresh(amsgrad=True))


def test_another_network_is_refused(tmp_path: Path) -> None:
    trained(tmp_path)
    network = nn.Linear(4, 2)
    with pytest.raises(InputError, match="does not fit the network: weight is"):
        start_from(tmp_path / "checkpoint.pt", network, torch.optim.Adam(network.parameters()))

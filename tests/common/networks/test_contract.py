# SPDX-License-Identifier: Apache-2.0
"""What every network keeps to, whatever its method."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common import networks
from common.checks import InputError
from common.networks.contract import check_pair, names_field, padding, wants

CONVENTIONS = Path(__file__).parents[3] / "docs" / "conventions.md"
CLASSES = [getattr(networks, name) for name in networks.__all__]


def tiny(network: Any) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = network(**sys.modules[network.__module__].CONFIGURATIONS["tiny"]).eval()
    return made


def pair(network: Any) -> torch.Tensor:
    size = (34, 20, 18)[: network.spatial_dims]
    return torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))


def documented() -> set[str]:
    section = CONVENTIONS.read_text(encoding="utf-8").partition("## Networks")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"_map"}


@pytest.mark.parametrize("network", CLASSES)
def test_outputs_are_those_of_the_table_and_only_what_is_asked_for_comes(network: Any) -> None:
    net = tiny(network)
    with torch.no_grad():
        image = pair(net)
        ddf, everything = net(image), net(image, details=True)
        assert isinstance(ddf, torch.Tensor) and torch.equal(everything["ddf"], ddf)
        assert ddf.shape == (1, net.spatial_dims, *image.shape[2:]) and ddf.dtype == torch.float32
        undocumented = {name for name in everything if name not in documented() and not name.endswith("_map")}
        assert not undocumented, "docs/conventions.md lists the names of outputs"
        for name in everything:
            assert set(net(image, details=[name, "no_such_output"])) == {"ddf", name}
        if "pyramid" in everything:
            assert len(everything["pyramid"]) == net.levels


@pytest.mark.parametrize("network", CLASSES)
def test_a_network_is_made_again_of_its_arguments(network: Any) -> None:
    net: Any = tiny(network)
    again = network(**net.arguments)
    assert again.arguments == net.arguments
    again.load_state_dict(net.state_dict())


@pytest.mark.parametrize("network", CLASSES)
def test_published_configurations_can_be_built(network: Any) -> None:
    for name, arguments in sys.modules[network.__module__].CONFIGURATIONS.items():
        with torch.device("meta"):
            assert sum(p.numel() for p in network(**arguments).parameters()) > 0, name


def test_names_and_patterns_choose_outputs() -> None:
    assert wants(True, "velocity") and not wants(False, "velocity") and not wants((), "velocity")
    assert wants(["ddf", "*_map"], "weight_map") and not wants(["*_map"], "inverse_map")
    assert wants(["inverse_map"], "inverse_map") and wants(True, "map")


def test_a_field_that_stands_in_for_a_map_is_asked_for_by_a_pattern() -> None:
    for details in (True, ["map", "ddf"]):
        assert names_field(details, "ddf")
    for pattern in (False, ["map", "ddf*"]):
        assert not names_field(pattern, "ddf")
    assert wants(["inverse_ddf*"], "inverse_ddf")


def test_what_is_no_pair_is_refused() -> None:
    check_pair(torch.zeros(1, 2, 4, 4), 2)
    for shape in ((1, 3, 4, 4), (1, 2, 4), (2, 4, 4)):
        with pytest.raises(ValueError, match="expected .B, 2, .spatial. with 2 spatial axes"):
            check_pair(torch.zeros(shape), 2)


@pytest.mark.parametrize("size", [(40, 48), (6, 7, 8)])
def test_images_of_another_number_of_axes_are_told_what_to_set(size: tuple[int, ...]) -> None:
    dims = len(size)
    given = f"{dims}D .{size[0]} x {size[1]}"
    with pytest.raises(InputError, match=f"{given}.*network is {5 - dims}D: add --network_def#spatial_dims {dims},"):
        check_pair(torch.zeros(1, 2, *size), 5 - dims)
    with pytest.raises(InputError, match="or save these slices with two axes"):
        check_pair(torch.zeros(1, 2, 6, 7, 1), 2)


@pytest.mark.parametrize(("size", "expected"), [((8, 16), [0, 0, 0, 0]), ((9, 1), [0, 7, 0, 7])])
def test_sizes_are_filled_up_to_a_multiple(size: tuple[int, ...], expected: list[int]) -> None:
    assert padding(size, 8) == expected

# SPDX-License-Identifier: Apache-2.0
"""What is unknown: which weights of a copy, with which rates, from where."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from common.checks import InputError
from common.networks import GradICON, NePhi
from common.networks.gradicon import CONFIGURATIONS
from common.optimisation import LatentCode, NetworkWeights, Unknown

SMALL: dict[str, Any] = {"size": 16, "channels": (2, 4), "local_level": 0, "latent": 3, "hidden": 8, "frequencies": 4}


def nephi(spatial_dims: int = 2, **arguments: Any) -> NePhi:
    torch.manual_seed(0)
    network = NePhi(spatial_dims, **{**SMALL, **arguments}).eval()
    for field in (network.field, network.inverse_field):
        nn.init.normal_(field.head.weight, std=0.2)
    return network


def shapes(parameters: object) -> list[tuple[int, ...]]:
    return sorted(tuple(parameter.shape) for parameter in parameters)  # type: ignore[attr-defined]  # of a list


def begun(unknown: Unknown[Any], network: nn.Module, image: torch.Tensor, rate: float) -> tuple[nn.Module, Any]:
    """What is optimised, and the groups of its optimiser."""
    own = unknown.start(network, image)
    (stage,) = unknown.stages(own, {"moving": image[:, :1], "fixed": image[:, 1:]}, [3], rate)
    assert stage.steps == 3 and isinstance(stage.optimiser, torch.optim.Adam)
    return own, stage.optimiser.param_groups


def test_all_weights_of_a_network_are_unknown_and_copies_in_evaluation() -> None:
    network = GradICON(2, **CONFIGURATIONS["tiny"]).train()
    own, groups = begun(NetworkWeights(), network, torch.rand(1, 2, 16, 16), 0.5)
    assert not own.training and [group["lr"] for group in groups] == [0.5]
    assert shapes(groups[0]["params"]) == shapes(network.parameters())
    assert not {p.data_ptr() for p in own.parameters()} & {p.data_ptr() for p in network.parameters()}


def test_what_is_frozen_stays_as_it_is() -> None:
    network = GradICON(2, **CONFIGURATIONS["tiny"])
    network.stages[0].requires_grad_(False)
    _, groups = begun(NetworkWeights(), network, torch.rand(1, 2, 16, 16), 0.5)
    assert len(groups[0]["params"]) == sum(p.requires_grad for p in network.parameters())
    with pytest.raises(InputError, match="frozen"):
        begun(NetworkWeights(), network.requires_grad_(False), torch.rand(1, 2, 16, 16), 0.5)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_code_begins_with_what_the_encoder_says(spatial_dims: int) -> None:
    network, image = nephi(spatial_dims), torch.rand(1, 2, *[16] * spatial_dims)
    own, (codes, fields) = begun(LatentCode(), network, image, 0.01)
    code = network.code(image)
    assert [p.shape for p in codes["params"]] == [code.shared.shape, code.local.shape]
    assert torch.equal(codes["params"][0], code.shared) and torch.equal(codes["params"][1], code.local)
    assert (codes["lr"], fields["lr"]) == (0.1, 0.01)
    assert shapes(fields["params"]) == shapes([*network.field.parameters(), *network.inverse_field.parameters()])
    assert torch.equal(own.eval()(image), network(image))
    assert all(p.requires_grad and p.is_leaf for p in own.parameters())


def test_of_the_code_alone_the_fields_are_known() -> None:
    network, image = nephi(), torch.rand(1, 2, 16, 16)
    _, groups = begun(LatentCode(codes_only=True, code_rate=2), network, image, 0.01)
    assert [(len(group["params"]), group["lr"]) for group in groups] == [(2, 0.02)]


def test_a_table_of_codes_is_where_its_optimisation_begins() -> None:
    network, image = nephi(pairs=1), torch.rand(1, 2, 16, 16)
    own, groups = begun(LatentCode(), network, image, 0.01)
    row = network.codes.shared
    assert isinstance(row, nn.Parameter) and torch.equal(groups[0]["params"][0], row)
    assert groups[0]["params"][0] is not row and torch.equal(own.eval()(image), network(image))


def test_a_network_without_a_code_is_refused() -> None:
    with pytest.raises(InputError, match=r"GradICON has no code .*NetworkWeights"):
        begun(LatentCode(), GradICON(2, **CONFIGURATIONS["tiny"]), torch.rand(1, 2, 16, 16), 0.5)
    with pytest.raises(InputError, match="code_rate"):
        LatentCode(code_rate=0)


def test_weights_have_no_levels() -> None:
    network = GradICON(2, **CONFIGURATIONS["tiny"])
    with pytest.raises(InputError, match="one number"):
        next(NetworkWeights().stages(network, {}, [1, 2], 0.5))

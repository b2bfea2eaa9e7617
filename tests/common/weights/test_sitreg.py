# SPDX-License-Identifier: Apache-2.0
"""SITReg's official checkpoints: every entry has one place, and comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.networks import SITReg
from common.networks.sitreg import CONFIGURATIONS
from common.spatial.bspline import cubic_bspline
from common.weights.family import to_official, to_ours
from common.weights.official import import_weights
from common.weights.sitreg import FAMILY, KEY_MAP, describe_official, describe_ours
from common.weights.state_dicts import find_place, unpack_state_dict

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "sitreg"
CASES = ["net3d", "net2d", "net3d_oasis_style", "net3d_odd_batch2", "net3d_2023", "stats_lumir", "stats_oasis"]


def official(case: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries: list[Any] = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape, _ in entries}
    for name in state:
        if "upsampling_kernels" in name:
            length = len(state[name])
            steps = torch.arange(1, length + 1.0) if length == 3 else torch.arange(length) + 0.5
            state[name] = cubic_bspline(steps / ((length + 1) // 4) - 2)
    return state


@pytest.mark.parametrize("case", CASES)
def test_official_weights_go_into_the_network_and_come_back(case: str) -> None:
    state = official(case)
    weights = describe_official(state)
    ours = to_ours(FAMILY, state, weights.arguments)
    groups: dict[str, Any] = {"groups": 3 if "odd" in case else 2}
    groups |= {} if "update_groups" in weights.arguments else {"update_groups": groups["groups"]}
    SITReg(**weights.arguments, **groups).load_state_dict(ours)
    again = describe_ours(ours, {"rectify_first": "2023" in case})
    assert again == weights
    back = to_official(FAMILY, ours, again.arguments, (16, 16, 16))
    assert set(back) == set(state)
    for name, value in state.items():
        torch.testing.assert_close(back[name], value, rtol=0, atol=1e-7)
    order = [name for name in state if not FAMILY.is_constant(name)]
    assert [name for name in back if not FAMILY.is_constant(name)] == order


def test_description_tells_what_the_weights_show() -> None:
    lumir = describe_official(official("stats_lumir")).arguments
    assert lumir["channels"] == [12, 32, 64, 128, 128, 128] and lumir["update_channels"][-1] == 256
    assert lumir["convolutions"] is None and not lumir["rectify_first"] and "update_groups" not in lumir
    uneven = describe_official(official("net3d_odd_batch2")).arguments
    assert uneven["convolutions"] == [2, 1, 2, 2] and uneven["update_convolutions"] == [2, 2, 1, 2]
    assert describe_official(official("net2d")).arguments["spatial_dims"] == 2
    old = describe_official(official("net3d_2023")).arguments
    assert old["rectify_first"] and old["update_groups"] is None


@pytest.mark.parametrize("container", ["registration_network", "state_dict"])
def test_both_containers_are_opened(container: str) -> None:
    state = official("net3d")
    assert list(unpack_state_dict({container: state, "epoch": 3}, "model.pt", FAMILY.container)) == list(state)


def test_affine_stage_has_its_places_and_needs_python() -> None:
    state = official("net3d_affine")
    places = {name: find_place(name, KEY_MAP) for name in state if "_affine" in name and "_indicator" not in name}
    assert places["_affine_extraction_network.linears.0.weight"] is None
    assert places["_affine_extraction_network.linears.1.weight"] == "affine.hidden.0.weight"
    assert places["_affine_extraction_network.final_linear.bias"] == "affine.head.bias"
    with pytest.raises(InputError, match="This checkpoint has an affine stage"):
        describe_official(state)


def test_other_checkpoints_are_refused() -> None:
    with pytest.raises(InputError, match="This is no checkpoint of SITReg: .* its first entries are a.weight"):
        describe_official({"a.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="These are no weights of SITReg"):
        describe_ours({"a.weight": torch.zeros(1)}, {"rectify_first": False})


def test_one_entry_of_another_size_is_named() -> None:
    state = official("net3d")
    name = "_feature_extractor.downsampling_blocks.0.conv.convolutions.1.conv.weight"
    state[name] = state[name][:, :3]
    with pytest.raises(InputError, match=r"downsampling_blocks.0.conv.convolutions.1.conv.weight is \(8, 3, 3, 3, 3\)"):
        to_ours(FAMILY, state, describe_official(state).arguments)


def test_weights_of_another_network_are_told_from_those_of_other_options(tmp_path: Path) -> None:
    bundle = Path(__file__).parents[3] / "bundles" / "sitreg_oasis"
    with torch.device("meta"):
        networks = {name: SITReg(**CONFIGURATIONS[name]) for name in ("oasis_2023", "lumir")}
    for name, network in networks.items():
        state = {key: torch.zeros(value.shape) for key, value in network.state_dict().items()}
        made = to_official(FAMILY, state, network.arguments, (16, 16, 16))
        torch.save({"registration_network": made}, tmp_path / f"{name}.pt")
    lines = import_weights(bundle, tmp_path / "oasis_2023.pt", tmp_path / "model.pt")
    assert "add --network_def#rectify_first True to every command" in lines[1]
    with pytest.raises(
        InputError, match="another network than that of sitreg_oasis, .*update_groups None: unknown .* more"
    ):
        import_weights(bundle, tmp_path / "lumir.pt", tmp_path / "other.pt")
    assert not (tmp_path / "other.pt").exists()
    lines = import_weights(bundle.with_name("sitreg_lumir"), tmp_path / "oasis_2023.pt", tmp_path / "other.pt")
    assert "--network_def#channels '[8, 40, 40, 40]'" in lines[1] and "update_groups None" in lines[1]

# SPDX-License-Identifier: Apache-2.0
"""GradICON's official checkpoints: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.networks import GradICON
from common.weights.family import to_official, to_ours
from common.weights.gradicon import FAMILY, prefixes
from common.weights.official import export_weights, import_weights
from common.weights.state_dicts import unpack_state_dict

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "gradicon"
PUBLISHED: dict[str, Any] = {
    "spatial_dims": 3,
    "channels": [16, 32, 64, 256, 512],
    "up_channels": [16, 32, 64, 128, 256],
    "halvings": [2, 1, 0, 0],
}
SMALL: dict[str, Any] = {**PUBLISHED, "channels": [8, 12, 16], "up_channels": [8, 8, 12]}
CASES: dict[str, dict[str, Any]] = {
    "unigradicon_published": PUBLISHED,
    "multistep_2d_b2": {**SMALL, "spatial_dims": 2},
    "loss_icon_2d": {**SMALL, "spatial_dims": 2, "halvings": [0]},
    "loss_dense_2d_b2": {**SMALL, "spatial_dims": 2, "halvings": [1, 0]},
    "instance_3d": {**SMALL, "halvings": [1, 0, 0]},
}


def official(case: str) -> dict[str, torch.Tensor]:
    """By the names of the file; those of losses and optimisation begin with the loss's prefix."""
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(3) if kind == "int64" else torch.randn(shape, generator=generator)
        for name, shape, kind in entries
    }


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = unpack_state_dict(official(case), case, FAMILY.container)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    ours = to_ours(FAMILY, state, found.arguments)
    net = GradICON(**found.arguments)
    net.load_state_dict(ours)
    assert FAMILY.describe_ours(net.state_dict(), net.arguments) == found
    back = to_official(FAMILY, net.state_dict(), found.arguments, None)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())


def test_unets_and_layers_lie_where_they_should() -> None:
    state = official("unigradicon_published")
    assert len(state) == 188
    ours = to_ours(FAMILY, state, PUBLISHED)
    for name, place in {
        "netPhi.netPhi.net.netPhi.net.net.downConvs.0.weight": "stages.0.down.0.weight",
        "netPhi.netPhi.net.netPsi.net.upConvs.4.bias": "stages.1.up.4.bias",
        "netPhi.netPsi.net.batchNorms.2.running_var": "stages.2.norms.2.running_var",
        "netPsi.net.lastConv.weight": "stages.3.last.weight",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_first_half_of_training_has_the_same_tree_without_the_last_step() -> None:
    whole, first = prefixes([2, 1, 0, 0]), prefixes([2, 1, 0])
    assert whole[:3] == [f"netPhi.{name}" for name in first]


def test_grids_of_older_files_are_dropped() -> None:
    state = {"identity_map": torch.zeros(1, 2, 4, 4), "net.spacing": torch.ones(2), **official("loss_icon_2d")}
    state = {name.removeprefix("regis_net."): value for name, value in state.items()}
    arguments = FAMILY.describe_official(state, None).arguments
    ours = to_ours(FAMILY, state, arguments)
    assert arguments == CASES["loss_icon_2d"] and set(ours) == set(GradICON(**arguments).state_dict())


def test_files_go_through_a_bundle_and_back(tmp_path: Path) -> None:
    bundle, given, written = tmp_path / "bundle", tmp_path / "step_2.trch", tmp_path / "back.trch"
    (bundle / "configs").mkdir(parents=True)
    network = {"_target_": "common.networks.GradICON", **SMALL}
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network}), encoding="utf-8")
    (bundle / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
    state = official("instance_3d")
    torch.save(state, given)
    sentences = import_weights(bundle, given)
    assert any("add --network_def#halvings '[1, 0, 0]' to every command" in line for line in sentences)
    network["halvings"] = [1, 0, 0]
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network}), encoding="utf-8")
    export_weights(bundle, written)
    # The file is the state dict itself, of the network without its loss.
    back = torch.load(written, weights_only=True)
    assert [f"regis_net.{name}" for name in back] == list(state)
    assert all(torch.equal(back[name.removeprefix("regis_net.")], value) for name, value in state.items())


def test_what_is_no_checkpoint_or_of_another_network_is_refused() -> None:
    for name in ("encoder.lastConv.weight", "lastConv.weight", "netPsi.net.lastConv.weight"):
        with pytest.raises(InputError, match=r"no checkpoint of GradICON, whose U-Nets end in lastConv\.weight"):
            FAMILY.describe_official({name: torch.zeros(1)}, None)
    state = official("multistep_2d_b2")
    with pytest.raises(InputError, match="no variant lung"):
        FAMILY.describe_official(state, "lung")
    ours = to_ours(FAMILY, state, CASES["multistep_2d_b2"])
    with pytest.raises(InputError, match=r"GradICON with 3 U-Nets: 4 are in them"):
        FAMILY.describe_ours(ours, {**CASES["multistep_2d_b2"], "halvings": [2, 1, 0]})
    del state["netPsi.net.upConvs.1.bias"]
    with pytest.raises(InputError, match=r"missing netPsi\.net\.upConvs\.1\.bias"):
        to_ours(FAMILY, state, CASES["multistep_2d_b2"])

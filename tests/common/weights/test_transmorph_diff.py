# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TransMorph-diff: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.networks import TransMorphDiff
from common.weights.family import to_official, to_ours
from common.weights.official import export_weights, import_weights
from common.weights.transmorph_diff import FAMILY

from .conftest import transmorph_entries

ARGUMENTS: dict[str, Any] = {
    "spatial_dims": 3,
    "embed_dim": 12,
    "depths": [2] * 4,
    "heads": [2, 2, 4, 4],
    "window": [2, 3, 2],
    "output_resolution": "full",
    "head_channels": 8,
}


def official() -> dict[str, torch.Tensor]:
    return transmorph_entries("diff_orgres", ARGUMENTS["window"])


def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was() -> None:
    state = official()
    found = FAMILY.describe_official(state, None)
    assert found.arguments == ARGUMENTS and found.size is None
    net = TransMorphDiff(**found.arguments)
    net.load_state_dict(to_ours(FAMILY, state, found.arguments))
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == net.arguments
    back = to_official(FAMILY, net.state_dict(), found.arguments, (32, 64, 32))
    assert all(torch.equal(back[name], value) for name, value in state.items())
    assert set(back) - set(state) == {"spatial_trans.grid"}
    names = [name for name in back if not FAMILY.is_constant(name)]
    assert names == [name for name in state if not FAMILY.is_constant(name)]


def test_heads_lie_where_they_should() -> None:
    state = official()
    ours = to_ours(FAMILY, state, ARGUMENTS)
    for name, place in {
        "c2.0.weight": "unet.of_images.1.conv.weight",
        "flow_sigma.bias": "log_variance.conv.bias",
        "up3.conv1.0.weight": "unet.up.3.first.conv.weight",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_what_is_no_checkpoint_of_it_is_refused() -> None:
    state = official()
    with pytest.raises(InputError, match="leave --variant ixi out"):
        FAMILY.describe_official(state, "ixi")
    del state["flow_sigma.weight"]
    with pytest.raises(InputError, match=r"no checkpoint of TransMorph-diff: flow_sigma\.weight is missing"):
        FAMILY.describe_official(state, None)


def test_a_configuration_of_the_bundle_exchanges_the_network(tmp_path: Path) -> None:
    configs = tmp_path / "transmorph" / "configs"
    configs.mkdir(parents=True)
    for name, target in (("inference", "TransMorph"), ("diff", "TransMorphDiff")):
        network = {"_target_": f"common.networks.{target}", **ARGUMENTS}
        (configs / f"{name}.json").write_text(json.dumps({"network_def": network}))
    (configs / "metadata.json").write_text(json.dumps({"training_spatial_shape": [32, 64, 32]}))
    bundle, file = configs.parent, tmp_path / "diff.pth.tar"
    torch.save({"state_dict": official()}, file)
    with pytest.raises(InputError, match=r"no checkpoint of TransMorph: reg_head\.0\.weight is missing"):
        import_weights(bundle, file)
    with pytest.raises(InputError, match=r"dif\.json is missing; --config names a configuration of transmorph"):
        import_weights(bundle, file, config="dif")
    assert "full network" in import_weights(bundle, file, config="diff")[0]
    export_weights(bundle, tmp_path / "back.pth.tar", config="diff")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)["state_dict"]
    assert all(torch.equal(back[name], value) for name, value in official().items())

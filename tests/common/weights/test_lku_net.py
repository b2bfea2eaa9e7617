# SPDX-License-Identifier: Apache-2.0
"""LKU-Net's official checkpoints: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.checks import InputError
from common.networks import LKUNet
from common.weights.family import to_official, to_ours
from common.weights.lku_net import FAMILY, UNUSED, official_entries
from common.weights.official import export_weights, import_weights

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "lku_net"
SMALL: dict[str, Any] = {"spatial_dims": 3, "start_channels": 2, "kernel_size": None}
CASES: dict[str, dict[str, Any]] = {
    "ixi_diff": SMALL,
    "oasis_full_batch2": SMALL,
    "oasis_2d": {**SMALL, "spatial_dims": 2, "start_channels": 4},
}


def official(case: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in entries}


@pytest.mark.parametrize("half_res", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str, half_res: bool) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    arguments = {**found.arguments, "half_res": half_res}
    net = LKUNet(**arguments)
    net.load_state_dict(to_ours(FAMILY, state, arguments))
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == arguments
    back = to_official(FAMILY, net.state_dict(), arguments, None)
    assert len(back) == 84 and [name for name in back if name in state] == list(state)
    # What is never called is not kept.
    lost = ("dc10.", "dc7.", "dc8.", "up4.") if half_res else ("dc10.",)
    for name, value in back.items():
        assert torch.equal(value, torch.zeros_like(value) if name.startswith(lost) else state[name]), name


def test_files_have_84_entries_with_the_head_that_is_never_called_or_83_without() -> None:
    names = [name for name, _ in official_entries({**SMALL, "half_res": False})]
    assert len(names) == 84 and list(official("ixi_diff")) == names
    assert list(official("oasis_full_batch2")) == [name for name in names if name != UNUSED]


def test_layers_lie_where_they_should() -> None:
    state = official("ixi_diff")
    for half_res, way_up in (
        (False, {"up4.0.weight": "up.0.enlarge.weight", "dc1.0.bias": "up.3.first.conv.bias"}),
        (True, {"up3.0.weight": "up.0.enlarge.weight", "dc1.0.bias": "up.2.first.conv.bias"}),
    ):
        ours = to_ours(FAMILY, state, {**SMALL, "half_res": half_res})
        for name, place in {
            **way_up,
            "eninput.1.weight": "first.0.activation.weight",
            "ec2.0.weight": "down.0.0.conv.weight",
            "ec9.layer_oneKernel.0.weight": "down.3.1.point.weight",
            "ec3.layer_nonlinearity.weight": "down.0.1.activation.weight",
            "dc9.0.weight": "head.weight",
        }.items():
            assert torch.equal(ours[place], state[name])


def test_other_kernels_are_told() -> None:
    net = LKUNet(2, start_channels=1, kernel_size=5)
    state = to_official(FAMILY, net.state_dict(), net.arguments, None)
    assert FAMILY.describe_official(state, None).arguments["kernel_size"] == 5


def test_files_go_through_a_bundle_and_back(tmp_path: Path) -> None:
    bundle, given, written = tmp_path / "bundle", tmp_path / "DiceVal_0.7411_Epoch_0879.pth", tmp_path / "back.pth"
    (bundle / "configs").mkdir(parents=True)
    network = {"_target_": "common.networks.LKUNet", "start_channels": 4, "int_steps": 7}
    (bundle / "configs" / "inference.json").write_text(json.dumps({"network_def": network}), encoding="utf-8")
    (bundle / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
    state = official("ixi_diff")
    torch.save(state, given)
    sentences = import_weights(bundle, given)
    assert any("add --network_def#start_channels 2 to every command" in line for line in sentences)
    assert any("int_steps is 7 here" in line for line in sentences)
    export_weights(bundle, written)
    back = torch.load(written, weights_only=True)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items() if name != UNUSED)


def test_what_is_no_checkpoint_or_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"no checkpoint of LKU-Net: eninput\.0\.weight is missing"):
        FAMILY.describe_official({"encoder.weight": torch.zeros(1)}, None)
    state = official("ixi_diff")
    with pytest.raises(InputError, match="no variant diff"):
        FAMILY.describe_official(state, "diff")
    with pytest.raises(InputError, match=r"no checkpoint of LKU-Net: first\.0\.conv\.weight is missing"):
        FAMILY.describe_ours(state, SMALL)
    del state["dc5.0.bias"]
    with pytest.raises(InputError, match=r"missing dc5\.0\.bias"):
        to_ours(FAMILY, state, {**SMALL, "half_res": False})

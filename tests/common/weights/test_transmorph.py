# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of TransMorph: sizes as published, every entry has one place, and comes back from it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from common.checks import InputError
from common.networks import TransMorph
from common.networks.transmorph import CONFIGURATIONS
from common.weights.family import to_official, to_ours
from common.weights.transmorph import FAMILY

from .conftest import transmorph_entries

SMALL: dict[str, Any] = {
    "spatial_dims": 3,
    "embed_dim": 12,
    "depths": [2] * 4,
    "heads": [2, 2, 4, 4],
    "window": [2, 3, 2],
    "head_channels": 8,
    "qkv_bias": False,
    "conv_skip": True,
    "trans_skip": True,
}
EIGHT = {**SMALL, "embed_dim": 8, "heads": [2] * 4}
FULL, HALF = ({"output_resolution": form, "align_corners": form == "full"} for form in ("full", "half"))
CASES: dict[str, dict[str, Any]] = {
    "ixi_small": {**SMALL, **FULL},
    "oasis_small": {**SMALL, **HALF},
    "ixi_noconvskip": {**EIGHT, **FULL, "window": [2, 2, 3], "conv_skip": False},
    "ixi_odd_window_batch2": {**EIGHT, **FULL, "window": [3, 2, 5], "qkv_bias": True},
}
PARAMETERS = {
    "ixi": 46_771_251,
    "oasis": 46_556_979,
    "large": 107_949_923,
    "small": 11_757_195,
    "published_tiny": 244_527,
    "no_conv_skip": 46_702_131,
    "no_trans_skip": 41_545_779,
    "no_skip": 41_476_659,
}
SIZE = (32, 64, 96)


def official(case: str) -> dict[str, torch.Tensor]:
    return transmorph_entries(case, CASES[case]["window"])


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_networks_have_as_many_parameters(name: str) -> None:
    with torch.device("meta"):
        network = TransMorph(**CONFIGURATIONS[name])
    entries = dict(FAMILY.entries(network.arguments))
    assert sum(prod(shape) for shape in entries.values()) == PARAMETERS[name]
    # What no image goes through there is not made here.
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name] - sum(
        prod(shape) for key, shape in entries.items() if not _used(key, network)
    )


def _used(key: str, network: TransMorph) -> bool:
    conv_skip, half = network.arguments["conv_skip"], network.arguments["output_resolution"] == "half"
    if key.startswith(("c1.", "c2.")):
        return bool(conv_skip) and not (half and key.startswith("c2."))
    last = len(network.arguments["depths"]) - 1
    return bool(network.arguments["trans_skip"]) or not any(f"transformer.norm{i}." in key for i in range(last))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    net = TransMorph(**found.arguments)
    net.load_state_dict(to_ours(FAMILY, state, found.arguments))
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments == net.arguments
    back = to_official(FAMILY, net.state_dict(), net.arguments, SIZE)
    assert back.pop("spatial_trans.grid").shape == (1, 3, *SIZE) and set(back) == set(state)
    unused = {"ixi_noconvskip": {"c1.0.weight", "c2.0.weight"}, "oasis_small": {"c2.0.weight"}}.get(case, set())
    assert not any(back[name].any() for name in unused)
    assert all(torch.equal(back[name], value) for name, value in state.items() if name not in unused)
    names = [name for name in back if not FAMILY.is_constant(name)]
    assert names == [name for name in state if not FAMILY.is_constant(name)]


def test_parts_of_merged_voxels_have_the_order_of_monai() -> None:
    state = official("ixi_small")
    ours = to_ours(FAMILY, state, CASES["ixi_small"])["unet.encoder.merge.0.norm.weight"].view(8, 12)
    theirs = state["transformer.layers.0.downsample.norm.weight"].view(8, 12)
    offsets = {name: number for number, name in enumerate("000 100 010 001 110 011 101 111".split())}
    for number in range(8):
        assert torch.equal(ours[number], theirs[offsets[f"{number:03b}"]])


def test_where_the_warp_samples_is_that_of_the_configuration_for_weights_of_ours() -> None:
    net = TransMorph(**{**CASES["oasis_small"], "align_corners": True})
    assert FAMILY.describe_ours(net.state_dict(), net.arguments).arguments["align_corners"] is True


@pytest.mark.parametrize("wrapped", [False, True])
def test_files_of_relatives_have_their_head_beside_the_backbone(tmp_path: Path, wrapped: bool) -> None:
    assert FAMILY.read is not None
    state = official("ixi_small")
    named = {
        name.replace("reg_head.0.", "flow.conv.") if name.startswith("reg_head") else f"backbone.{name}": value
        for name, value in state.items()
    }
    torch.save({"epoch": 3, "state_dict": named, "best_dsc": 0.75} if wrapped else named, tmp_path / "net.pth.tar")
    read, stated = FAMILY.read(tmp_path / "net.pth.tar")
    assert not stated and set(read) == set(state)
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_what_is_no_checkpoint_of_it_is_refused() -> None:
    with pytest.raises(InputError, match="no checkpoint of TransMorph"):
        FAMILY.describe_official({"encoder.0.weight": torch.zeros(1)}, None)
    with pytest.raises(InputError, match="of TransMorphTVF: it has a head for each step"):
        FAMILY.describe_official(transmorph_entries("tvf_lumir", (2, 3, 3)), None)
    state = official("oasis_small")
    del state["up2.conv1.0.weight"]
    with pytest.raises(InputError, match=r"missing up2\.conv1\.0\.weight"):
        to_ours(FAMILY, state, CASES["oasis_small"])
    state = official("oasis_small")
    state["transformer.layers.1.blocks.0.attn.relative_position_index"] += 1
    with pytest.raises(InputError, match=r"layers\.1\.blocks\.0\.attn\.relative_position_index is not the index"):
        FAMILY.describe_official(state, None)
    with pytest.raises(InputError, match="variant"):
        FAMILY.describe_official(official("oasis_small"), "oasis")

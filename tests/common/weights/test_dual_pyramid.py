# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the published dual-pyramid code: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.blocks.vector_field_attention import unit_offsets
from common.checks import InputError
from common.networks import DualPyramid
from common.networks.dual_pyramid import VARIANTS
from common.weights.dual_pyramid import FAMILY, key_map
from common.weights.family import to_official, to_ours
from common.weights.official import export_weights, import_weights
from common.weights.state_dicts import find_place

GOLDEN = Path(__file__).parents[2] / "golden" / "data" / "dual_pyramid"
CHANNELS = [4, 6, 8, 8]
# Each layout of the published code: golden file to what it is of.
LAYOUTS: dict[str, dict[str, Any]] = {
    "conv_mfc": {"variant": "conv_mfc", "radius": 1, "decoder_channels": [6, 8, 8, 10]},
    "convic_c_tight": {"variant": "convic_c", "radius": 1, "decoder_channels": [6, 8, 8, 10]},
    "dp_vfa": {"variant": "vfa", "decoder_channels": None},
}
# An entry of the decoder at the finest level.
FINEST = {
    "conv_mfc": "deformation_decoder.decoder.dp_blocks.3.res_block.main_branch.0.0.weight",
    "convic_c_tight": "deformation_decoder._not_none_dense_extration_networks.0.res_block.main_branch.0.0.weight",
    "dp_vfa": "deformation_decoder.decoder.dp_blocks.3.proj.weight",
}


def official(case: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, _ in entries}


def bundle(folder: Path, variant: str) -> Path:
    """As much of a bundle as the importer looks at."""
    (folder / "configs").mkdir(parents=True)
    network = {"_target_": "common.networks.DualPyramid", "variant": variant}
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": network}), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text('{"training_spatial_shape": [32, 32, 32]}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("case", LAYOUTS)
def test_a_checkpoint_of_the_published_code_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == {"spatial_dims": 3, "channels": CHANNELS, **LAYOUTS[case]} and found.size is None
    ours = to_ours(FAMILY, state, found.arguments)
    net = DualPyramid(**found.arguments)
    net.load_state_dict(ours)
    assert FAMILY.describe_ours(net.state_dict(), net.arguments) == found
    back = to_official(FAMILY, net.state_dict(), found.arguments, None)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize("case", LAYOUTS)
def test_finest_level_comes_last_where_one_direction_is_searched_and_first_where_both_are(case: str) -> None:
    state = official(case)
    ours = to_ours(FAMILY, state, FAMILY.describe_official(state, None).arguments)
    place = "decoder.0.project.weight" if case == "dp_vfa" else "decoder.0.residual.first.weight"
    assert torch.equal(ours[place], state[FINEST[case]])
    assert torch.equal(
        ours["encoder.blocks.1.second_norm.bias"], state["feature_encoder.encoder.blocks.0.main_branch.1.1.bias"]
    )
    assert torch.equal(ours["encoder.blocks.0.skip.weight"], state["feature_encoder.encoder.block0.skip_conv.weight"])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_is_told_by_its_checkpoint(variant: str, spatial_dims: int) -> None:
    net = DualPyramid(spatial_dims, variant=variant, channels=(2, 3, 4), radius=2)
    state = to_official(FAMILY, net.state_dict(), net.arguments, (32, 32, 32))
    found = FAMILY.describe_official(state, variant).arguments
    given = {name: net.arguments[name] for name in ("spatial_dims", "variant", "channels", "decoder_channels")}
    assert {**found, "radius": 2} == {**given, "radius": 2}
    assert ("radius" in found) == any(name.startswith("correlation") for name in VARIANTS[variant].fed)
    ours = to_ours(FAMILY, state, found)
    assert list(ours) == list(net.state_dict())
    assert all(torch.equal(ours[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("variant", ["conv_c", "convic_mf"])
def test_blocks_of_another_kind_have_the_published_names(variant: str) -> None:
    blocks: dict[str, Any] = {"encoder_block": {"separable": True}, "decoder_block": {"groups": 2}}
    net = DualPyramid(variant=variant, channels=(2, 4), **blocks)
    decoder = "_not_none_dense_extration_networks.0" if net.variant.symmetric else "decoder.dp_blocks.1"
    places = {
        "feature_encoder.encoder.blocks.0.main_branch.1.0.1.weight": "encoder.blocks.1.main_branch.1.0.1.weight",
        "feature_encoder.encoder.block0.skip_norm.bias": "encoder.blocks.0.skip_norm.bias",
        f"deformation_decoder.{decoder}.res_block.main_branch.0.0.bias": "decoder.0.residual.main_branch.0.0.bias",
        f"deformation_decoder.{decoder}.out_block.0.weight": "decoder.0.flow.weight",
    }
    assert {name: find_place(name, key_map(net.arguments)) for name in places} == places
    assert set(places.values()) <= set(net.state_dict())


def test_constants_are_those_of_the_published_networks_and_ignored() -> None:
    nets = {variant: DualPyramid(variant=variant, channels=[2] * 5) for variant in ("conv_c", "convic_c", "vfa")}
    states = {name: to_official(FAMILY, net.state_dict(), net.arguments, (32,) * 3) for name, net in nets.items()}
    assert [len(state) for state in states.values()] == [132, 149, 77]
    assert sum(name.endswith("._indicator") and not value.numel() for name, value in states["convic_c"].items()) == 17
    offsets = states["vfa"]["deformation_decoder.decoder.dp_blocks.4.R"]
    assert torch.equal(offsets, unit_offsets(3, torch.empty(0))) and offsets[1].tolist() == [-1, -1, 0]


def test_what_is_no_checkpoint_of_a_dual_pyramid_or_of_another_variant_is_refused() -> None:
    with pytest.raises(InputError, match=r"no checkpoint of a dual-pyramid network: its first entries are simple_enc"):
        FAMILY.describe_official({"simple_encoder.0.layer.0.weight": torch.zeros(1)}, None)
    state = official("conv_mfc")
    with pytest.raises(InputError, match="of the conv_mfc network, not of the vfa one; leave --variant out"):
        FAMILY.describe_official(state, "vfa")
    arguments = FAMILY.describe_official(state, None).arguments
    lacking = {name: value for name, value in state.items() if not name.endswith("blocks.0.out_block.0.bias")}
    with pytest.raises(InputError, match=r"missing deformation_decoder\.decoder\.dp_blocks\.0\.out_block\.0\.bias"):
        to_ours(FAMILY, lacking, arguments)
    name = "deformation_decoder.decoder.dp_blocks.0.res_block.skip_conv.weight"
    with pytest.raises(InputError, match=r"take \[35, 39, 43, 40\] channels and features have \[4, 6, 8, 8\]"):
        FAMILY.describe_official({**state, name: torch.zeros(10, 40, 1, 1, 1)}, None)
    del state[name]
    with pytest.raises(InputError, match="no checkpoint of a dual-pyramid network"):
        FAMILY.describe_official(state, None)


def test_a_bundle_takes_its_own_variant_alone_and_gives_it_back(tmp_path: Path) -> None:
    state, path = official("convic_c_tight"), tmp_path / "epoch.pth.tar"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    other = bundle(tmp_path / "dp_conv_c", "conv_c")
    with pytest.raises(InputError, match=r"is of the convic_c network, dp_conv_c has the conv_c one; import it into"):
        import_weights(other, path)
    own = bundle(tmp_path / "dp_convic_c", "convic_c")
    lines = import_weights(own, path)
    assert "convic_c network, spatial_dims 3, radius 1, channels [4, 6, 8, 8]" in lines[0]
    assert "--network_def#channels '[4, 6, 8, 8]'" in lines[1] and "radius" not in lines[1]
    export_weights(own, tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_published_size_needs_no_further_option(tmp_path: Path) -> None:
    net = DualPyramid(variant="vfa")
    torch.save(to_official(FAMILY, net.state_dict(), net.arguments, None), tmp_path / "net.pth")
    lines = import_weights(bundle(tmp_path / "dp_vfa", "vfa"), tmp_path / "net.pth")
    assert not any("--network_def" in line for line in lines)

# SPDX-License-Identifier: Apache-2.0
"""VoxelMorph's official checkpoints, of each of its libraries: every entry has one place, and comes back from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from common.checks import InputError
from common.networks import VoxelMorph
from common.weights.family import to_official, to_ours
from common.weights.official import export_weights, import_weights
from common.weights.voxelmorph import FAMILY, read

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
POOL: dict[str, Any] = {
    "spatial_dims": 3,
    "backbone": "pool",
    "encoder": [16, 32, 32, 32],
    "decoder": [32, 32, 32, 32, 32, 16, 16],
    "convs_per_level": 1,
    "svf_resolution": 1,
    "probabilistic": False,
}
VOXELMORPH_1: dict[str, Any] = {"encoder": [8, 32, 32, 32], "decoder": [32, 32, 32, 32, 32, 8, 8]}
REPEATED: dict[str, Any] = {
    "encoder": [6, 6, 12, 12, 24, 24],
    "decoder": [48, 48, 24, 24, 12, 12, 6, 6],
    "convs_per_level": 2,
    "svf_resolution": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "voxelmorph/pool_vm2_dense": POOL,
    "voxelmorph/pool_2d_batch2": {**POOL, "spatial_dims": 2, "decoder": [32, 32, 32, 32, 8, 8]},
    "voxelmorph/pool_int_features_halfres": {**POOL, **REPEATED},
    "voxelmorph/stride_vm1": {**POOL, **VOXELMORPH_1, "backbone": "stride"},
    "voxelmorph/prob_official": {**POOL, "encoder": [8] * 2, "decoder": [8] * 4, "probabilistic": True},
    "synthmorph/net_3d": {**POOL, "encoder": [8] * 4, "decoder": [8] * 6, "svf_resolution": 2},
}
SIZE = (16, 32, 48)
PUBLISHED = {"sees": "intensities", "passes": 1}


def official(case: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{case}.npz", allow_pickle=False) as file:
        entries = json.loads(str(file["meta"]))["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape, *_ in entries}


def saved(path: Path, content: dict[str, Any]) -> Path:
    torch.save(content, path)
    return path


def keras(path: Path, state: dict[str, Tensor], group: str = "", model: str = "vxm_dense") -> Path:
    """A file as Keras 2 writes it: a group of each layer, in which its name stands again."""
    levels = sum(name.startswith("unet_model.encoder") and name.endswith(".0.main.bias") for name in state)
    with h5py.File(path, "w") as file:
        for name, value in state.items():
            words = name.removeprefix("unet_model.").split(".")
            layer = {
                "encoder": lambda w: f"unet_enc_conv_{w[1]}_{w[2]}",
                "decoder": lambda w: f"unet_dec_conv_{levels - 1 - int(w[1])}_{w[2]}",
                "remaining": lambda w: f"unet_dec_final_conv_{w[1]}",
            }.get(words[0], lambda w: w[0])(words)
            array = value.numpy()
            if words[-1] == "weight":
                array = np.moveaxis(array, (0, 1), (-1, -2))
            part = "kernel:0" if words[-1] == "weight" else "bias:0"
            file[f"{group or f'{model}_{layer}'}/{model}_{layer}/{part}"] = array
        file.create_group(f"{model}_transformer").attrs["weight_names"] = []
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_fills_the_network_and_comes_back_as_it_was(case: str) -> None:
    state = official(case)
    found = FAMILY.describe_official(state, None)
    assert found.arguments == CASES[case] and found.size is None
    net = VoxelMorph(**found.arguments)
    net.load_state_dict(to_ours(FAMILY, state, found.arguments))
    assert FAMILY.describe_ours(net.state_dict(), net.arguments) == found
    back = to_official(FAMILY, net.state_dict(), found.arguments, None)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_layers_lie_where_they_should() -> None:
    state = official("voxelmorph/stride_vm1")
    ours = to_ours(FAMILY, state, CASES["voxelmorph/stride_vm1"])
    for name, place in {
        "unet_model.downarm.1.main.weight": "unet.encoder.1.0.weight",
        "unet_model.uparm.3.main.bias": "unet.decoder.3.0.bias",
        "unet_model.extras.2.main.weight": "unet.decoder.4.2.weight",
        "flow.bias": "flow.bias",
    }.items():
        assert torch.equal(ours[place], state[name])


def test_the_library_says_how_it_integrates(tmp_path: Path) -> None:
    state, config = official("voxelmorph/pool_vm2_dense"), {"inshape": [16, 32, 16], "int_steps": 5, "int_downsize": 1}
    found, stated = read(saved(tmp_path / "0100.pt", {"config": config, "model_state": state}))
    assert stated == {"int_steps": 5, "int_downsize": 1, **PUBLISHED} and list(found) == list(state)


def test_checkpoints_of_the_tables_hold_grids_that_tell_the_size(tmp_path: Path) -> None:
    state = official("voxelmorph/stride_vm1") | {"transformer.grid": torch.zeros(1, 3, *SIZE)}
    content = {"epoch": 500, "state_dict": state, "best_dsc": 0.73, "optimizer": {"state": {}, "param_groups": []}}
    found, stated = read(saved(tmp_path / "dsc0.730.pth.tar", content))
    description = FAMILY.describe_official(found, None)
    assert stated == PUBLISHED and description.size == SIZE
    ours = to_ours(FAMILY, found, description.arguments)
    assert set(ours) == set(VoxelMorph(**description.arguments).state_dict())
    back = to_official(FAMILY, ours, description.arguments, SIZE)
    assert list(back) == list(state) and back["transformer.grid"][0, :, 3, 5, 7].tolist() == [3, 5, 7]


def test_registration_networks_of_dilatemorph_have_the_names_of_the_library(tmp_path: Path) -> None:
    state = official("voxelmorph/mmipt_register")
    found, _ = read(saved(tmp_path / "epoch_500.pth", {"meta": {"epoch": 500}, "state_dict": state}))
    assert FAMILY.describe_official(found, None).arguments == {**POOL, **VOXELMORPH_1}
    assert torch.equal(found["flow.weight"], state["flow.conv.weight"])
    assert torch.equal(found["unet_model.decoder.0.0.main.bias"], state["backbone.unet_model.decoder.0.0.main.bias"])


@pytest.mark.parametrize("group", ["", "model_weights", "model_weights/vxm_dense"])
@pytest.mark.parametrize(
    "case", ["voxelmorph/pool_int_features_halfres", "voxelmorph/prob_official", "synthmorph/net_3d"]
)
def test_files_of_keras_are_the_same_network_wherever_its_layers_lie(tmp_path: Path, case: str, group: str) -> None:
    state = official(case)
    found, stated = read(keras(tmp_path / "vxm.h5", state, group, "synth" if group else "vxm_dense"))
    assert stated == {"padding_mode": "border", **PUBLISHED}
    assert list(found) == list(state) and all(torch.equal(found[name], value) for name, value in state.items())


def test_kernels_keep_the_order_of_their_spatial_axes(tmp_path: Path) -> None:
    state = official("voxelmorph/pool_2d_batch2")
    path = keras(tmp_path / "vxm.h5", state)
    with h5py.File(path) as file:
        kernel = file["vxm_dense_unet_enc_conv_1_0/vxm_dense_unet_enc_conv_1_0/kernel:0"][()]
    assert kernel.shape == (3, 3, 16, 32)
    found, _ = read(path)
    assert found["unet_model.encoder.1.0.main.weight"][5, 7, 2, 0].item() == kernel[2, 0, 7, 5]


def changed(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    if how == "missing level":
        return {name: value for name, value in state.items() if not name.startswith("unet_model.decoder.1.")}
    if how == "further head":
        return {**state, "hyper_dense.weight": torch.zeros(4, 4)}
    if how == "wider":
        return {**state, "unet_model.remaining.0.main.weight": torch.zeros(8, 40, 3, 3, 3)}
    if how == "no bias":
        return {name: value for name, value in state.items() if name != "flow.bias"}
    return {f"conv3d_{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(state.items())}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing level", r"lacks VoxelMorph's layer dec_conv_2_0 \(weight\)"),
        ("further head", "no place for the layer vxm_dense_hyper_dense"),
        ("wider", r"weight of the layer vxm_dense_unet_dec_final_conv_0 is \(8, 40, 3, 3, 3\), not \(8, 16, 3, 3, 3\)"),
        ("no bias", r"lacks VoxelMorph's layer flow \(bias\)"),
        ("numbered", "no place for the layer vxm_dense_conv3d_0"),
    ],
)
def test_a_file_of_keras_of_another_architecture_is_refused_with_the_first_layer_that_differs(
    tmp_path: Path, how: str, message: str
) -> None:
    path = keras(tmp_path / "other.h5", changed(official("synthmorph/net_3d"), how))
    with pytest.raises(InputError, match=f"other.h5 is of another architecture: .*{message}"):
        read(path)


def test_damaged_and_empty_files_of_keras_are_refused(tmp_path: Path) -> None:
    path = keras(tmp_path / "vxm.h5", official("synthmorph/net_3d"))
    (tmp_path / "half.h5").write_bytes(path.read_bytes()[:3000])
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_group("model_weights")
    with h5py.File(tmp_path / "text.h5", "w") as file:
        file["vxm_dense_flow/vxm_dense_flow/kernel:0"] = "import os"
    for name, message in (
        ("half", "is no HDF5 file of Keras, or it is damaged"),
        ("empty", "holds no weights of Keras' layers"),
        ("text", "layer vxm_dense_flow has kernel:0, not a kernel and a bias"),
        ("none", "There is no checkpoint at"),
    ):
        with pytest.raises(InputError, match=message):
            read(tmp_path / f"{name}.h5")


def made(folder: Path, **network: Any) -> Path:
    """A bundle of a network, as far as importer and exporter look at it."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    definition = {"_target_": "common.networks.VoxelMorph", **network}
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": definition}), encoding="utf-8")
    metadata = json.dumps({"training_spatial_shape": SIZE})
    (folder / "configs" / "metadata.json").write_text(metadata, encoding="utf-8")
    return folder


def test_files_go_through_a_bundle_and_back(tmp_path: Path) -> None:
    bundle, state = made(tmp_path / "bundle"), official("voxelmorph/pool_vm2_dense")
    config = {"inshape": [*SIZE], "int_steps": 7, "int_downsize": 2}
    sentences = import_weights(bundle, saved(tmp_path / "vxm.pt", {"config": config, "model_state": state}))
    assert any("add --network_def#int_steps 7 to every command" in line for line in sentences)
    assert any("padding_mode is zeros here" in line for line in sentences)
    assert not any("tell int_steps" in line for line in sentences)
    export_weights(made(bundle, int_steps=7), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    features = [POOL["encoder"], POOL["decoder"]]
    assert back["config"] == {
        **config,
        "nb_unet_features": features,
        "nb_unet_conv_per_level": 1,
        "unet_half_res": False,
    }
    assert list(back["model_state"]) == list(state)
    assert all(torch.equal(back["model_state"][name], value) for name, value in state.items())


def test_files_of_the_tables_go_through_a_bundle_and_back(tmp_path: Path) -> None:
    bundle = made(tmp_path / "bundle", backbone="stride", **VOXELMORPH_1)
    state = official("voxelmorph/stride_vm1") | {"transformer.grid": torch.zeros(1, 3, *SIZE)}
    sentences = import_weights(bundle, saved(tmp_path / "dsc.pth.tar", {"state_dict": state}))
    assert not any("configured otherwise" in line or "WARNING" in line for line in sentences)
    export_weights(bundle, tmp_path / "back.pth.tar")
    back = torch.load(tmp_path / "back.pth.tar", weights_only=True)["state_dict"]
    assert list(back) == list(state) and torch.equal(back["flow.weight"], state["flow.weight"])


def test_files_of_keras_ask_for_the_border_that_they_were_trained_with(tmp_path: Path) -> None:
    path = keras(tmp_path / "vxm.h5", official("synthmorph/net_3d"))
    line = next(line for line in import_weights(made(tmp_path / "bundle"), path) if "configured otherwise" in line)
    assert "--network_def#padding_mode border" in line and "--network_def#svf_resolution 2" in line


def test_published_weights_are_for_intensities_and_those_for_edges_are_not_published(tmp_path: Path) -> None:
    bundle, state = made(tmp_path / "bundle", sees="edges"), official("voxelmorph/pool_vm2_dense")
    sentences = import_weights(bundle, saved(tmp_path / "vxm.pt", {"model_state": state}))
    assert any("add --network_def#sees intensities to every command" in line for line in sentences)
    with pytest.raises(InputError, match="The network sees edges, published ones see intensities"):
        export_weights(bundle, tmp_path / "back.pt")
    assert not (tmp_path / "back.pt").exists()


def test_what_is_no_checkpoint_or_of_another_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint of VoxelMorph, .*; its first are encoder\.weight"):
        FAMILY.describe_official({"encoder.weight": torch.zeros(1)}, None)
    state = official("voxelmorph/pool_vm2_dense")
    with pytest.raises(InputError, match="leave --variant lung out"):
        FAMILY.describe_official(state, "lung")
    with pytest.raises(InputError, match=r"holds 'unet_model\.hyper', which this network does not know"):
        FAMILY.describe_official(state | {"unet_model.hyper": torch.zeros(1)}, None)
    with pytest.raises(InputError, match="no weights of VoxelMorph, of a U-Net and its flow"):
        FAMILY.describe_ours({"encoder.0.weight": torch.zeros(1)}, {"backbone": "pool"})
    del state["unet_model.decoder.1.0.main.bias"]
    with pytest.raises(InputError, match=r"missing unet_model\.decoder\.1\.0\.main\.bias"):
        to_ours(FAMILY, state, POOL)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "epoch_500.pth", {"meta": Path("history"), "state_dict": official("synthmorph/net_3d")})
    with pytest.raises(InputError, match="no checkpoint of tensors and plain values"):
        read(path)

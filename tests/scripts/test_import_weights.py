# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in the authors' layout, made from the golden files, into a bundle, through its inference, and back."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor

from common.checks import InputError
from common.engine import load_weights
from common.networks import EOIR
from common.weights.official import export_weights

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = {
    "plain_c4": "eoir_lumir",
    "oasis_c4": "eoir_oasis",
    "oasis_int_lk3_c4": "eoir_oasis",
    "acdc_batch2_c4": "eoir_acdc",
}
State = dict[str, Tensor]


def module(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


tool = module("import_weights", ROOT / "scripts" / "import_weights.py")
layout = module("golden_layout", GOLDEN / "layout.py")


def golden(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    meta, arrays = layout.load(GOLDEN / "data" / "eoir" / f"{case}.npz")
    return meta, arrays


def grids(variant: str, size: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    """Identity grids as the published networks hold them, from their description."""
    for level in range(6 if variant == "oasis" else 5):
        axes = [torch.arange(n if variant == "acdc" and k == 2 else n // 2**level).float() for k, n in enumerate(size)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        yield f"transformers.{level}.grid", grid
        if level < 5:
            yield f"integrates.{level}.transformer.grid", grid


def official(case: str, size: tuple[int, ...] | None = None) -> State:
    """State dict in the authors' layout and order."""
    meta, arrays = golden(case)
    state = {name: torch.from_numpy(values) for name, values in layout.fill(meta["state_dict"], **meta["fill"]).items()}
    made = dict(grids(case.split("_")[0], size or arrays["in/x"].shape[2:]))
    return state | {name: made[name] for name in sorted(made, key=lambda name: name.startswith("integrates"))}


def checkpoint(path: Path, state: State, form: str = "training") -> Path:
    forms: dict[str, Any] = {
        "training": {"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 1e-4}]}},
        "bare": state,
        "wrapped": {"model_state_dict": {f"module.{name}": value for name, value in state.items()}},
    }
    torch.save(forms[form], path)
    return path


def run(*arguments: object) -> None:
    tool.main([str(argument) for argument in arguments])


def without_grids(state: State) -> State:
    return {name: value for name, value in state.items() if not name.endswith("grid")}


@pytest.mark.parametrize("form", ["training", "bare", "wrapped"])
def test_each_container_of_the_authors_gives_the_same_weights(tmp_path: Path, form: str) -> None:
    path = checkpoint(tmp_path / "net_latest.pth", official("plain_c4"), form)
    run("eoir_lumir", path, "--output", tmp_path / "model.pt")
    ours = torch.load(tmp_path / "model.pt", weights_only=True)
    assert list(ours) == list(EOIR(start_channel=4).state_dict())
    assert torch.equal(ours["encoder.0.conv.weight"], official("plain_c4")["simple_encoder.0.layer.0.weight"])


@pytest.mark.parametrize("case", CASES)
def test_official_layout_comes_back_exactly_and_in_order(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state = official(case)
    bundle = CASES[case]
    run(bundle, checkpoint(tmp_path / "net.pth", state), "--output", tmp_path / "model.pt")
    load_weights(EOIR(**described(capsys.readouterr().out)), tmp_path / "model.pt")
    size = [str(n) for n in state["transformers.0.grid"].shape[2:]]
    run(bundle, tmp_path / "model.pt", "--export", tmp_path / "back.pth", "--size", *size)
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model_state_dict"]
    assert list(back) == list(state)
    unused = "disp_warp_4." if "oasis" in case else "none"
    for name, value in state.items():
        assert back[name].dtype == torch.float32
        # The published OASIS network never calls this estimator.
        assert torch.equal(back[name], torch.zeros_like(value) if name.startswith(unused) else value), name


def described(output: str) -> dict[str, Any]:
    """Arguments of the network, from the sentence that tells what was found."""
    found: dict[str, Any] = {"variant": output.partition(" network,")[0].rpartition(" ")[2]}
    for name in ("start_channel", "search_radius", "kernel_size"):
        if name in output:
            found[name] = int(output.partition(f"{name} ")[2].split(",")[0])
    return found


def test_oasis_without_the_unused_estimator_is_the_same_network(tmp_path: Path) -> None:
    state = official("oasis_c4")
    reduced = {name: value for name, value in state.items() if not name.startswith("disp_warp_4.")}
    for name, entries in (("all", state), ("reduced", reduced)):
        run("eoir_oasis", checkpoint(tmp_path / "net.pth", entries), "--output", tmp_path / f"{name}.pt")
    assert (tmp_path / "all.pt").read_bytes() == (tmp_path / "reduced.pt").read_bytes()


@pytest.mark.filterwarnings("ignore:parsing config_file")
@pytest.mark.parametrize("case", ["plain_c4", "oasis_c4", "oasis_int_lk3_c4", "acdc_batch2_c4"])
def test_imported_weights_give_the_published_displacement_through_the_inference_of_the_bundle(
    tmp_path: Path, case: str
) -> None:
    meta, arrays = golden(case)
    bundle, model = ROOT / "bundles" / CASES[case], tmp_path / "model.pt"
    run(bundle.name, checkpoint(tmp_path / "net.pth", official(case)), "--output", model)
    for name, array in (("moving", arrays["in/x"]), ("fixed", arrays["in/y"])):
        nibabel.save(nibabel.Nifti1Image(array[0, 0], np.eye(4)), tmp_path / f"{name}.nii.gz")
    # The golden images are in the network's units already.
    override: dict[str, Any] = {"network_def#start_channel": 4, "dataset#intensity": None}
    if "oasis" in case:
        override |= {"network_def#kernel_size": int(meta["constructor"].get("lk_size", 5))}
        override |= {"network_def#int_steps": 7 * int(meta["constructor"].get("is_int", 0))}
    workflow = ConfigWorkflow(
        str(bundle / "configs" / "inference.json"),
        workflow_type="infer",
        logging_file=False,
        bundle_root=str(bundle),
        fixed=str(tmp_path / "fixed.nii.gz"),
        moving=str(tmp_path / "moving.nii.gz"),
        output_dir=str(tmp_path / "out"),
        ckpt_path=str(model),
        spacing=None,
        **override,
    )
    workflow.initialize()
    workflow.run()
    ddf = nibabel.load(tmp_path / "out" / "moving_to_fixed_ddf.nii.gz").get_fdata()
    stored = arrays["out/pos_flow_0_s3"][0]
    kind, allowed = layout.tolerance(meta, "out/pos_flow_0_s3")
    assert kind == "abs" and np.abs(stored).max() > 0.5
    assert np.abs(np.moveaxis(ddf, -1, 0)[:, ::3, ::3, ::3] - stored).max() < allowed


def test_width_and_size_are_inferred_and_what_to_add_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("eoir_lumir", checkpoint(tmp_path / "a.pth", official("plain_noint_cv2_c3")), "--output", tmp_path / "model.pt")
    output = capsys.readouterr().out
    assert "plain network, start_channel 3, search_radius 2, trained at 48x32x32 voxels" in output
    assert "add --network_def#start_channel 3 --network_def#search_radius 2 to every command" in output
    assert "WARNING: trained at 48x32x32 voxels, eoir_lumir is for 160x224x192" in output
    assert "int_steps is 7 here" in output


def test_weights_of_the_configured_width_and_size_need_no_advice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = without_grids(official("wide_plain_c32"))
    # Empty storage: the importer looks at shapes alone, and full grids would take 190 MB.
    for level in range(2):
        state[f"transformers.{level}.grid"] = torch.zeros(1).expand(1, 3, 160 >> level, 224 >> level, 192 >> level)
    run("eoir_lumir", checkpoint(tmp_path / "a.pth", state), "--output", tmp_path / "model.pt")
    output = capsys.readouterr().out
    assert "start_channel 32" in output and "909,232 parameters" in output
    assert "--network_def" not in output and "WARNING" not in output
    load_weights(EOIR(), tmp_path / "model.pt")


def test_plain_and_acdc_are_told_apart_by_grids_and_asked_for_without(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "acdc.pth", official("acdc_batch2_c4"))
    with pytest.raises(InputError, match="is of the acdc network, eoir_lumir has the plain one"):
        run("eoir_lumir", path, "--output", tmp_path / "model.pt")
    with pytest.raises(InputError, match="is a checkpoint of the acdc network, not of the plain one"):
        run("eoir_lumir", path, "--variant", "plain", "--output", tmp_path / "model.pt")
    bare = checkpoint(tmp_path / "bare.pth", without_grids(official("acdc_batch2_c4")))
    with pytest.raises(InputError, match="say which it is with --variant plain or --variant acdc"):
        run("eoir_acdc", bare, "--output", tmp_path / "model.pt")
    run("eoir_acdc", bare, "--variant", "acdc", "--output", tmp_path / "model.pt")
    run("eoir_acdc", path, "--output", tmp_path / "again.pt")
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "again.pt").read_bytes()


@pytest.mark.parametrize(("case", "bundle"), [("oasis_c4", "eoir_lumir"), ("plain_c4", "eoir_oasis")])
def test_checkpoint_of_another_variant_is_refused_with_the_differing_keys(
    tmp_path: Path, case: str, bundle: str
) -> None:
    with pytest.raises(
        InputError, match=r"has the (plain|oasis) one; .* Differing keys: unknown encoder.2.*; missing enco"
    ):
        run(bundle, checkpoint(tmp_path / "a.pth", official(case)), "--output", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def spoil(state: State, change: str) -> State:
    name = "disp_warp_2.get_flow.bias"
    if change == "missing":
        return {key: value for key, value in state.items() if key != name}
    if change == "unknown":
        return {**state, "decoder.weight": torch.zeros(1)}
    if change == "shape":
        return {**state, name: torch.zeros(4)}
    if change == "nan":
        return {**state, name: torch.full((3,), float("nan"))}
    return {f"transformer.{key}": value for key, value in state.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "start_channel 4, search_radius 1: missing disp_warp_2.get_flow.bias"),
        ("unknown", "start_channel 4, search_radius 1: unknown decoder.weight"),
        ("shape", r"disp_warp_2.get_flow.bias is \(4,\) instead of \(3,\)"),
        ("nan", "disp_warp_2.get_flow.bias has NaN or infinite values"),
        ("foreign", "no checkpoint of EOIR: .* is missing; its first entries are transformer.simple_encoder"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, change: str, message: str) -> None:
    path = checkpoint(tmp_path / "a.pth", spoil(official("plain_c4"), change))
    with pytest.raises(InputError, match=message):
        run("eoir_lumir", path, "--output", tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path, ("x",))


def test_files_that_are_no_checkpoints_are_refused_without_running_them(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"model_state_dict": _Evil()}, tmp_path / "code.pth")
    for name in ("text.pth", "code.pth"):
        with pytest.raises(InputError, match="is no checkpoint of tensors and plain values"):
            run("eoir_lumir", tmp_path / name, "--output", tmp_path / "model.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(InputError, match=r"empty.pth holds the entries \['epoch'\]; expected a state dict"):
        run("eoir_lumir", tmp_path / "empty.pth", "--output", tmp_path / "model.pt")
    with pytest.raises(InputError, match="There is no checkpoint at .*absent.pth"):
        run("eoir_lumir", tmp_path / "absent.pth", "--output", tmp_path / "model.pt")
    with pytest.raises(InputError, match="There is no bundle 'eoir'; these exist: .*eoir_acdc"):
        run("eoir", tmp_path / "absent.pth")


def test_existing_files_are_kept_unless_told_otherwise(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "a.pth", official("plain_c4"))
    model = tmp_path / "model.pt"
    model.write_text("precious")
    with pytest.raises(InputError, match="model.pt exists: name another file, or replace it with --overwrite"):
        run("eoir_lumir", path, "--output", model)
    with pytest.raises(InputError, match="model.pt exists"):
        run("eoir_lumir", path, "--export", model)
    assert model.read_text() == "precious"
    run("eoir_lumir", path, "--output", model, "--overwrite")
    run("eoir_lumir", path, "--output", model, "--overwrite", "true")
    load_weights(EOIR(start_channel=4), model)


def test_export_needs_weights_and_a_size_that_the_published_network_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no checkpoint at"):
        run("eoir_lumir", tmp_path / "absent.pt", "--export", tmp_path / "b.pth")
    torch.save(EOIR(start_channel=2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(InputError, match="cannot be built for .*40, 48, 32.*: axes are multiples of 16 from 32"):
        run("eoir_lumir", tmp_path / "model.pt", "--export", tmp_path / "b.pth", "--size", 40, 48, 32)
    with pytest.raises(
        InputError, match="do not fit the oasis network with start_channel 2, .*: missing encoder.3.conv"
    ):
        run("eoir_oasis", tmp_path / "model.pt", "--export", tmp_path / "b.pth", "--size", 32, 48, 32)
    assert not (tmp_path / "b.pth").exists()
    with pytest.raises(SystemExit):
        run("eoir_lumir", "--size", 32, 48, 32)


def test_weights_of_a_bundle_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    torch.save({"a": 1}, tmp_path / "models" / "model.pt")
    with pytest.raises(InputError, match=r"models/model\.pt holds the entries \['a'\]"):
        export_weights(tmp_path, tmp_path / "b.pth")

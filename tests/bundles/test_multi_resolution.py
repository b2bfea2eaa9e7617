# SPDX-License-Identifier: Apache-2.0
"""NePhi behind a pre-alignment: both trainings, evaluation and inference by configurations that change the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from common.cli import sentence_of
from common.engine import save_atomically
from common.networks import gradicon, nephi

from .conftest import ROOT, phantom_options, run_workflow

BUNDLE = ROOT / "bundles" / "nephi_lungct"


def read(folder: Path, *names: str) -> dict[str, Any]:
    found: dict[str, Any] = ConfigParser.load_config_files([str(folder / name) for name in names])
    return found


def tiny(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {f"{name}#{key}": value for key, value in arguments.items()}


def test_the_second_network_is_trained_behind_the_first_one_and_holds_its_weights(
    phantoms: Path, tmp_path: Path
) -> None:
    first, second = (module.CONFIGURATIONS["tiny"] for module in (gradicon, nephi))
    data, short = phantom_options(BUNDLE, phantoms), {"max_epochs": 1, "pairs_per_epoch": 1, "batch_size": 1}
    save_atomically(gradicon.GradICON(**first).state_dict(), tmp_path / "first.pt")
    both = {**tiny("network_def#first#network", first), **tiny("network_def#second", second)}
    both |= {"ckpt_path": str(tmp_path / "both.pt")}
    with pytest.raises(RuntimeError) as refused:
        run_workflow(BUNDLE, "train+multi_resolution", **data, **short, **both, output_dir=str(tmp_path / "none"))
    assert "to train, give its own with --pre_ckpt_path FILE" in str(sentence_of(refused.value))
    given = {"pre_ckpt_path": str(tmp_path / "first.pt"), "output_dir": str(tmp_path / "train")}
    run_workflow(BUNDLE, "train+multi_resolution", **data, **short, **both, **given)
    alone, held = (torch.load(tmp_path / name, weights_only=True) for name in ("first.pt", "both.pt"))
    assert all(torch.equal(value, held[f"first.{name}"]) for name, value in alone.items())
    assert {name.partition(".")[0] for name in held} == {"first", "second"}

    # Neither asks for the file of the first network.
    (tmp_path / "first.pt").unlink()
    run_workflow(BUNDLE, "evaluate+multi_resolution", **data, **both, io_steps=1, output_dir=str(tmp_path / "evaluate"))
    assert json.loads((tmp_path / "evaluate" / "summary.json").read_text())["pairs"] == 2
    parser = ConfigParser(read(BUNDLE / "configs", "inference.json", "multi_resolution.json"))
    parser.update({**both, "device": "cpu"})
    again = parser.get_parsed_content("network").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in held.items())


def test_the_networks_are_those_of_the_single_ones() -> None:
    folder = BUNDLE / "configs"
    first, train = (read(folder, *names) for names in (("train.json", "pre_alignment.json"), ("train.json",)))
    both = read(folder, "train.json", "multi_resolution.json")
    assert both["network_def"]["second"] == train["network_def"]
    assert both["network_def"]["first"]["network"] == first["network_def"]
    # On the same extent of the scans, but for a voxel at the end of each axis.
    assert first["spacing"] == [2 * step for step in train["spacing"]]
    assert first["spatial_size"] == [-(-n // 2) for n in train["spatial_size"]]


def test_the_pre_alignment_has_all_that_its_loss_looks_at() -> None:
    config = read(BUNDLE / "configs", "train.json", "pre_alignment.json")
    parser = ConfigParser({name: config[name] for name in ("loss", "network_def")})
    parser.update(tiny("network_def", gradicon.CONFIGURATIONS["tiny"]))
    loss, network = parser.get_parsed_content("loss"), parser.get_parsed_content("network_def")
    image = torch.rand(1, 2, 16, 12, 9)
    targets = {"moving": image[:, :1], "fixed": image[:, 1:], "draw": torch.tensor([[0, 1, 2]])}
    loss(network(image, details=loss.details), targets).backward()
    assert set(loss.terms_of_last_call()) == {"lncc", "lncc_back", "consistency"}

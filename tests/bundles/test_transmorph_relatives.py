# SPDX-License-Identifier: Apache-2.0
"""TransMorph-diff and -bspl in the bundle of TransMorph, by the configurations that exchange its network."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import torch

from common.networks import TransMorphBSpline, TransMorphDiff, transmorph_bspline, transmorph_diff

from .conftest import ROOT, phantom_options, run_workflow

BUNDLE = ROOT / "bundles" / "transmorph_ixi"


def small(configurations: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"network_def#{name}": value for name, value in configurations["tiny"].items()}


def test_random_velocities_are_trained_with_their_divergence_and_registered_with_their_uncertainty(
    phantoms: Path, tmp_path: Path
) -> None:
    network, weights = small(transmorph_diff.CONFIGURATIONS), str(tmp_path / "model.pt")
    options = {**phantom_options(BUNDLE, phantoms), **network, "max_epochs": 1, "pairs_per_epoch": 2}
    run_workflow(BUNDLE, "train+diff+train_diff", **options, output_dir=str(tmp_path), ckpt_path=weights)
    (row,) = csv.DictReader((tmp_path / "history.csv").open())
    # Of a fresh network sigma is exp(-5), and each voxel has five to six neighbours: 3/2 (10 D sigma^2 + 10).
    assert 15 < float(row["kl"]) < 15.1 and float(row["mse"]) > 0
    TransMorphDiff(**transmorph_diff.CONFIGURATIONS["tiny"]).load_state_dict(torch.load(weights, weights_only=True))

    moving, fixed = (str(phantoms / "imagesTr" / f"SHAPES_000{k}_0000.nii.gz") for k in (2, 1))
    places = {"output_dir": str(tmp_path / "pairs"), "ckpt_path": weights, "moving": moving, "fixed": fixed}
    run_workflow(BUNDLE, "inference+diff", **phantom_options(BUNDLE, phantoms, "infer"), **network, **places)
    (image,) = (tmp_path / "pairs").glob("*_uncertainty.nii.gz")
    spread = nib.load(image).get_fdata()
    # The velocity of a fresh network scatters by exp(-5), and two squarings multiply it by up to four.
    assert spread.shape == (32, 32, 32) and math.exp(-5) < spread.mean() < 4 * math.sqrt(3) * math.exp(-5)


def test_splines_are_trained_with_the_penalty_of_their_velocity(phantoms: Path, tmp_path: Path) -> None:
    options = {**phantom_options(BUNDLE, phantoms), **small(transmorph_bspline.CONFIGURATIONS), "max_epochs": 1}
    options |= {"pairs_per_epoch": 2, "loss#terms#smoothness#on": ["velocity"]}
    weights = str(tmp_path / "model.pt")
    run_workflow(BUNDLE, "train+bspline", **options, output_dir=str(tmp_path), ckpt_path=weights)
    network = TransMorphBSpline(**transmorph_bspline.CONFIGURATIONS["tiny"])
    network.load_state_dict(torch.load(weights, weights_only=True))
    (row,) = csv.DictReader((tmp_path / "history.csv").open())
    assert float(row["smoothness"]) > 0


def test_what_is_published_is_configured() -> None:
    configured = {}
    for name in ("diff", "bspline", "train_diff"):
        configured[name] = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())
    assert [configured["train_diff"][name] for name in ("image_sigma", "prior_lambda")] == [0.01, 10]
    for name, kind in (("diff", TransMorphDiff), ("bspline", TransMorphBSpline)):
        arguments = {key: value for key, value in configured[name]["network_def"].items() if key != "_target_"}
        with torch.device("meta"):
            assert kind(**arguments).arguments == kind().arguments

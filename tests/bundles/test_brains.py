# SPDX-License-Identifier: Apache-2.0
"""Bundles of brains: one small network in all workflows, voxels of 2 mm, and the recipes of the weights in the box."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from common.checks import InputError
from common.cli import sentence_of
from common.engine import save_atomically

from .conftest import BUNDLES, phantom_options, run_workflow, tiny

BRAINS = [bundle for bundle in BUNDLES if bundle.name.endswith("_brains")]
LARGEST = 6_000_000
"""Bytes of a file of weights that a clone carries."""
every_bundle = pytest.mark.parametrize("bundle", BRAINS, ids=lambda path: path.name)


def parser(bundle: Path, *names: str, **options: Any) -> ConfigParser:
    """Of configurations, of which each changes those before it."""
    files = [str(bundle / "configs" / f"{name}.json") for name in names]
    made = ConfigParser(ConfigParser.load_config_files(files))
    made.update({"bundle_root": str(bundle), **options})
    return made


@every_bundle
def test_the_network_is_small_enough_to_be_carried(bundle: Path) -> None:
    network = parser(bundle, "inference").get_parsed_content("network_def")
    assert sum(value.numel() * value.element_size() for value in network.state_dict().values()) < LARGEST


def test_recipes_change_schedule_and_labels_alone() -> None:
    schedule = {"max_epochs", "pairs_per_epoch", "learning_rate", "ema_decay", "val_interval", "seed", "device"}
    for bundle in BRAINS:
        train = parser(bundle, "train").get()
        for recipe in sorted((bundle / "configs").glob("train_*.json")):
            made = parser(bundle, "train", recipe.stem).get()
            further = {"supervised", "start_from", "ckpt_path", "output_dir"} if "labels" in recipe.stem else set()
            assert {name for name in made if made[name] != train.get(name)} - schedule == {"_desc_", *further}


@every_bundle
def test_the_learning_rate_rises_and_falls_to_zero_at_the_last_epoch(bundle: Path) -> None:
    made = parser(bundle, "train", "train_cpu", max_epochs=4, **tiny(bundle))
    optimizer, schedule = (made.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(optimizer.param_groups[0]["lr"] / made.get_parsed_content("learning_rate"))
    assert rates == pytest.approx([0.515, 1.0, 0.5, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    "bundle", [path for path in BRAINS if path.name != "sitreg_brains"], ids=lambda path: path.name
)
def test_labels_are_in_the_loss_that_is_asked_for(bundle: Path) -> None:
    without, added = (
        set(parser(bundle, "train", supervised=labels, **tiny(bundle)).get_parsed_content("loss").terms)
        for labels in (False, True)
    )
    assert added - without == {"dice"}


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_scans_come_to_voxels_of_2_mm_and_those_that_have_them_stay(name: str, tmp_path: Path) -> None:
    array = np.random.default_rng(0).random((12, 16, 20), dtype=np.float32)
    prepared = parser(BRAINS[0], name, labels=[1]).get_parsed_content("preprocessing")
    for millimetres, shape in ((1.0, (6, 8, 10)), (2.0, (12, 16, 20))):
        scan = {"image": tmp_path / f"{millimetres:g}.nii.gz", "label": tmp_path / f"{millimetres:g}_label.nii.gz"}
        affine = np.diag([millimetres] * 3 + [1])
        nibabel.save(nibabel.Nifti1Image(array, affine), scan["image"])
        nibabel.save(nibabel.Nifti1Image((array > 0.5).astype(np.uint8), affine), scan["label"])
        seen = prepared({key: str(path) for key, path in scan.items()})
        assert seen["image"].shape[1:] == seen["label"].shape[1:] == shape
        assert seen["image"].pixdim.tolist() == [2, 2, 2] and set(seen["label"].unique().tolist()) == {0, 1}
    assert torch.equal(seen["image"][0].as_tensor(), torch.from_numpy(array))


def test_a_training_with_labels_goes_on_from_the_weights_without(phantoms: Path, tmp_path: Path) -> None:
    bundle = BRAINS[0]
    options = {**phantom_options(bundle, phantoms), **tiny(bundle), "output_dir": str(tmp_path / "out")}
    options |= {"labels": list(range(1, 9)), "max_epochs": 1, "pairs_per_epoch": 2, "val_interval": 1}
    options |= {"ckpt_path": str(tmp_path / "model_labels.pt"), "start_from": str(tmp_path / "model.pt")}
    with pytest.raises((InputError, RuntimeError)) as error:
        run_workflow(bundle, "train+train_labels", **options)
    assert f"--start_from is {str(tmp_path / 'model.pt')!r}; give a file that exists" in str(sentence_of(error.value))
    network = parser(bundle, "train", **tiny(bundle)).get_parsed_content("network_def")
    save_atomically(network.state_dict(), tmp_path / "model.pt")
    # Weights that hardly move are still those that it began with.
    run_workflow(bundle, "train+train_labels", **options, learning_rate=1e-6)
    trained = torch.load(tmp_path / "model_labels.pt", weights_only=True)
    furthest = max(float((trained[name] - value).abs().max()) for name, value in network.state_dict().items())
    assert 0 < furthest < 1e-5
    assert "dice" in (tmp_path / "out" / "history.csv").read_text().splitlines()[0].split(",")

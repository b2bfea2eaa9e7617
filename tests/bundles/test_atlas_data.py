# SPDX-License-Identifier: Apache-2.0
"""Bundles of data sets in which an atlas is registered with every scan: which pairs, and which labels count."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monai.bundle import ConfigParser

from common.data.readers import ixi, lpba40

from .conftest import BUNDLES, run_workflow, tiny

DATA = {"ixi": (ixi.LABELS, (5, 26, 77, 255)), "lpba40": (lpba40.LABELS, lpba40.LEFT_OUT)}
"""By data set the labels that count, and others that label maps have."""
ATLAS = [bundle for bundle in BUNDLES if bundle.name.rpartition("_")[2] in DATA]
SIZE = (24, 20, 18)


@pytest.mark.parametrize("config", ["train.json", "evaluate.json"])
@pytest.mark.parametrize("bundle", ATLAS, ids=lambda path: path.name)
def test_published_labels_count_and_others_are_let_in(bundle: Path, config: str) -> None:
    labels, others = DATA[bundle.name.rpartition("_")[2]]
    content = ConfigParser(ConfigParser.load_config_file(str(bundle / "configs" / config)))
    assert content.get_parsed_content("counted") == list(labels)
    for part in content.get_parsed_content("preprocessing").transforms:
        if type(part).__name__ == "CheckSubjectd":
            assert part.labels >= {0, *labels, *others}


def write_pickles(folder: Path) -> None:
    """An atlas, two scans to train with and one for each other section; label maps in columns of all numbers."""
    values = np.array([0, *ixi.LABELS, *DATA["ixi"][1]], np.int16)
    for number, name in enumerate(("atlas", "Train/subject_0", "Train/subject_1", "Val/subject_2", "Test/subject_3")):
        row = np.arange(SIZE[0] * SIZE[1]).reshape(*SIZE[:2], 1) + 3 * number
        place = np.minimum(row // 13, len(values) - 1)
        label = np.broadcast_to(values[place], SIZE).copy()
        image = (label % 17 / 17 + np.random.default_rng(number).random(SIZE) / 10).astype(np.float32)
        path = folder / f"{name}.pkl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps((image, label)))


def test_pickles_are_trained_and_measured_from_the_atlas_to_each_scan(tmp_path: Path) -> None:
    (bundle, *_) = (bundle for bundle in ATLAS if bundle.name.endswith("_ixi"))
    write_pickles(tmp_path / "data")
    options: dict[str, Any] = {"dataset_dir": str(tmp_path / "data"), "ckpt_path": str(tmp_path / "m.pt")}
    options |= tiny(bundle)
    run_workflow(bundle, "train", output_dir=str(tmp_path / "train"), max_epochs=1, **options)
    (epoch,) = csv.DictReader((tmp_path / "train" / "history.csv").open())
    assert 0 < float(epoch["val_dice_before"]) < 1
    run_workflow(bundle, "evaluate", output_dir=str(tmp_path / "evaluate"), **options)
    (case,) = csv.DictReader((tmp_path / "evaluate" / "cases.csv").open())
    assert (case["moving_id"], case["fixed_id"]) == ("atlas", "subject_3")
    rows = list(csv.DictReader((tmp_path / "evaluate" / "labels.csv").open()))
    assert sorted({int(row["label"]) for row in rows}) == sorted(ixi.LABELS)

# SPDX-License-Identifier: Apache-2.0
"""A bundle that the script has just made passes the checks of those that are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from scripts import new_bundle, wiring

from . import test_configs as checks
from .conftest import BUNDLES, ROOT


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    shutil.copy(ROOT / "requirements.txt", root)
    (root / "common").symlink_to(ROOT / "common")
    for existing in BUNDLES:
        ignored = shutil.ignore_patterns("outputs", "data", "eval", "models")
        shutil.copytree(existing, root / "bundles" / existing.name, symlinks=True, ignore=ignored)
    made = new_bundle.make_bundle(root, "eoir", "hammers")
    assert wiring.differences(root) == []
    return made


def test_folder_and_metadata(bundle: Path) -> None:
    checks.test_bundle_folder_is_complete(bundle)
    checks.test_metadata_fits_the_schema(bundle)
    checks.test_metadata_names_the_pinned_versions(bundle)


def test_workflows(bundle: Path, phantoms: Path, tmp_path: Path) -> None:
    checks.test_all_properties_are_there(bundle, "train.json", "train", phantoms, tmp_path)
    checks.test_all_properties_are_there(bundle, "inference.json", "infer", phantoms, tmp_path / "infer")
    checks.test_labels_are_in_the_loss_where_the_recipe_has_them(bundle, phantoms, tmp_path)
    checks.test_resume_without_a_checkpoint_keeps_the_weights(bundle, phantoms, tmp_path)


def test_network(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks.test_all_workflows_of_a_bundle_mean_the_same_network(bundle)
    checks.test_fields_of_other_networks_are_not_mixed(bundle)
    checks.test_network_takes_and_gives_what_the_metadata_says(bundle)
    checks.test_load_returns_the_network_with_its_weights(bundle, tmp_path, monkeypatch)

# SPDX-License-Identifier: Apache-2.0
"""Where a bundle runs from: beside a package ``common`` of the user's, without links, and with what Windows lacks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, environment

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"
# The last word of a run that found its parts.
FOUND = "ERROR: --max_epochs is 0; give the number of epochs, 1 or more.\n"
FOREIGN = "ERROR: Python finds no package common, or another one than this bundle needs"


@pytest.fixture
def without_links(tmp_path: Path) -> Path:
    """A bundle in a checkout whose links are files of text."""
    bundle = tmp_path / "checkout" / "bundles" / BUNDLE.name
    shutil.copytree(BUNDLE / "configs", bundle / "configs")
    (bundle / "common").write_text("../../common")
    (tmp_path / "checkout" / "common").symlink_to(ROOT / "common", target_is_directory=True)
    return bundle


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """A folder of the user's with a package ``common`` and a copy of a configuration."""
    (tmp_path / "user" / "common").mkdir(parents=True)
    (tmp_path / "user" / "common" / "__init__.py").write_text("")
    shutil.copy(BUNDLE / "configs" / "train.json", tmp_path / "user" / "mine.json")
    return tmp_path / "user"


def last_words(cwd: Path, *arguments: str, **variables: str) -> str:
    command = [sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", *arguments, "--max_epochs", "0"]
    run = subprocess.run(command, cwd=cwd, env={**environment(), **variables}, capture_output=True, text=True)
    assert run.returncode == 1
    return run.stderr[run.stderr.rfind("ERROR: ") :]


def test_a_copied_config_beside_a_common_of_the_users(user: Path) -> None:
    assert last_words(user, "--config_file", "mine.json", "--bundle_root", str(BUNDLE)) == FOUND


def test_a_config_finds_its_bundle_from_any_folder(user: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = str(BUNDLE / "configs" / "train.json")
    assert last_words(tmp_path / "empty", "--config_file", config) == FOUND
    said = last_words(user, "--config_file", config)
    assert said.startswith(FOREIGN) and said.count("\n") == 1


def test_a_checkout_without_links_and_python_without_the_modules_of_unix(without_links: Path, tmp_path: Path) -> None:
    hidden = "import sys; sys.modules |= dict.fromkeys(['resource', 'fcntl', 'grp', 'termios', 'syslog'])"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(hidden)
    options = ["--config_file", "configs/train.json"]
    assert last_words(without_links, *options, PYTHONPATH=str(tmp_path / "site")) == FOUND


def test_the_cause_is_named_where_python_finds_another_common_first(user: Path, without_links: Path) -> None:
    said = last_words(user, "--config_file", "mine.json", "--bundle_root", str(without_links))
    assert said.startswith(FOREIGN) and said.count("\n") == 1


def test_a_common_that_was_imported_before_is_named_in_python(user: Path) -> None:
    code = (
        "import common, sys; from monai.bundle import create_workflow;"
        "create_workflow(config_file=sys.argv[1] + '/configs/inference.json', bundle_root=sys.argv[1])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(BUNDLE)]
    run = subprocess.run(command, cwd=user, env=environment(), capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.splitlines()[-1].startswith(FOREIGN)

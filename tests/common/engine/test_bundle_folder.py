# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import common
from common.checks import InputError
from common.engine.bundle_folder import check_bundle, check_code, check_writable, find_metadata


def test_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--bundle_root"):
        check_bundle(tmp_path)


def test_foreign_common_is_refused(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    metadata = tmp_path / "configs" / "metadata.json"
    metadata.write_text('{"common_version": "99.0"}')
    with pytest.raises(InputError, match=f"needs version 99.0 .* version {common.__version__} was loaded"):
        check_bundle(tmp_path)
    metadata.write_text(json.dumps({"common_version": common.__version__}))
    check_bundle(tmp_path)


def test_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write to the folder"):
        check_writable(tmp_path / "file" / "below")


def test_code_of_another_release_or_an_edited_copy_is_refused(tmp_path: Path) -> None:
    metadata = tmp_path / "configs" / "metadata.json"
    metadata.parent.mkdir()
    metadata.write_text('{"version": "a bundle of another project"}')
    check_code(metadata)
    metadata.write_text(json.dumps({"common_version": common.__version__}))
    check_code(metadata)
    loaded = Path(common.__file__).parent
    (tmp_path / "common").symlink_to(loaded, target_is_directory=True)
    check_code(metadata)
    (tmp_path / "common").unlink()
    shutil.copytree(loaded, tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))
    check_code(metadata)
    edited = tmp_path / "common" / "checks.py"
    edited.write_text(edited.read_text() + "\n")
    with pytest.raises(InputError, match="a package 'common' that differs was loaded from"):
        check_code(metadata)
    edited.unlink()
    with pytest.raises(InputError, match="a package 'common' that differs was loaded from"):
        check_code(metadata)
    metadata.write_text('{"common_version": "99.0"}')
    with pytest.raises(InputError, match="needs version 99.0"):
        check_code(metadata)


def test_metadata_beside_the_configuration_come_first(tmp_path: Path) -> None:
    assert find_metadata(tmp_path, tmp_path) is None
    (tmp_path / "configs").mkdir()
    of_bundle = tmp_path / "configs" / "metadata.json"
    of_bundle.write_text("{}")
    assert find_metadata(tmp_path / "elsewhere", tmp_path) == of_bundle
    (tmp_path / "metadata.json").write_text("{}")
    assert find_metadata(tmp_path, tmp_path) == tmp_path / "metadata.json"

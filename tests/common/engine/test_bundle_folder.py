# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

import common
from common.checks import InputError
from common.engine.bundle_folder import check_bundle, check_writable


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

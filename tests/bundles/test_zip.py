# SPDX-License-Identifier: Apache-2.0
"""A published zip works in an empty folder, with the repository out of reach."""

from __future__ import annotations

import json
import runpy
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import common

from .conftest import ROOT, TINY


def test_zip_trains_evaluates_and_infers_on_its_own(
    tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    package = runpy.run_path(str(ROOT / "scripts" / "package.py"))["main"]
    assert package(["eoir_shapes3d", "--output_dir", str(tmp_path / "dist")]) == 0
    (archive,) = (tmp_path / "dist").glob("eoir_shapes3d_v*.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "empty")
    bundle = tmp_path / "empty" / "eoir_shapes3d"
    assert (bundle / "common" / "__init__.py").is_file() and not (bundle / "common").is_symlink()

    short = ["--max_epochs", "1", "--val_interval", "1", "--pairs_per_epoch", "1", *TINY]
    for run_id, config, options in (
        ("train", "train", short),
        ("evaluate", "evaluate", TINY[:2]),
        ("infer", "inference", TINY[:2]),
    ):
        result = command_line("run", run_id, "--config_file", f"configs/{config}.json", *options, cwd=bundle)
        assert result.returncode == 0, result.stderr[-3000:]
    assert (bundle / "models" / "model.pt").is_file()
    assert len(list((bundle / "outputs" / "inference").glob("*_ddf.nii.gz"))) == 12
    made_with = json.loads((bundle / "outputs" / "evaluate" / "summary.json").read_text())["provenance"]
    assert made_with["git"] is None, "the parts came from a checkout instead of the zip"
    assert made_with["versions"]["common"] == common.__version__

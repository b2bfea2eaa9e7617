# SPDX-License-Identifier: Apache-2.0
"""Known fields and their recovery from the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "recover.py"


def recover(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_true_fields_are_recovered_without_error(tmp_path: Path) -> None:
    hu = np.full((20, 18, 16), -1000, np.int16)
    hu[3:-3, 3:-3, 3:-3] = 50
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([3.0, 3, 3, 1])), tmp_path / "ct.nii.gz")
    counts = ["--training", 1, "--validation", 1, "--test", 1]
    made = recover("make", "--image", tmp_path / "ct.nii.gz", "--output", tmp_path / "known", *counts)
    assert made.returncode == 0, made.stderr
    found = tmp_path / "found"
    found.mkdir()
    (tmp_path / "known/fields/COPY_0003_ddf.nii.gz").rename(found / "SCAN_to_COPY_0003_ddf.nii.gz")
    (tmp_path / "known/fields/COPY_0003_ddf.nii.gz").symlink_to(found / "SCAN_to_COPY_0003_ddf.nii.gz")
    measure = ["measure", "--data", tmp_path / "known", "--fields", found, "--output", tmp_path / "errors.csv"]
    measured = recover(*measure)
    assert measured.returncode == 0, measured.stderr
    header, row, mean = (tmp_path / "errors.csv").read_text().splitlines()
    assert header == "fixed_id,median,median_before,p95,p95_before,fold_percent"
    assert row.startswith("COPY_0003,0,") and mean.startswith("mean,0,") and float(row.split(",")[2]) > 0
    assert "COPY_0003" in measured.stdout


def test_what_a_user_can_mend_is_one_line(tmp_path: Path) -> None:
    result = recover("make", "--image", tmp_path / "none.nii.gz", "--output", tmp_path / "known")
    assert result.returncode == 1 and not (tmp_path / "known").exists()
    assert result.stderr.startswith("ERROR: ") and len(result.stderr.splitlines()) == 1

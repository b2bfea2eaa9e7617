# SPDX-License-Identifier: Apache-2.0
"""The command as a user types it computes in as many threads as it may, and these do not wait awake for long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from common.threads import NUMBER, SPINS, WAITING

from .conftest import ROOT

BUNDLE = ROOT / "bundles" / "eoir_shapes3d"


@pytest.mark.parametrize("chosen", [{}, {"OMP_NUM_THREADS": "1"}])
def test_threads_of_the_command(chosen: dict[str, str], tmp_path: Path) -> None:
    config = {
        "bundle_root": ".",
        "start": {
            "_target_": "common.engine.restart_and_check",
            "bundle_root": "@bundle_root",
            "output_dir": str(tmp_path),
        },
        "seen": "$__import__('torch').get_num_threads(), __import__('os').environ['GOMP_SPINCOUNT']",
        "run": ["$@start", "$print('seen', *@seen)"],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    environment = {name: text for name, text in os.environ.items() if name not in (*NUMBER, *WAITING, "PYTHONPATH")}
    run = subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(tmp_path / "config.json")],
        cwd=BUNDLE,
        env={**environment, **chosen},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    number = chosen.get("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    assert f"seen {number} {SPINS}" in run.stdout

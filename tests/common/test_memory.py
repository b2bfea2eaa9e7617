# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch
from common.memory import give_back_freed_memory, keep_freed_memory

def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

keep_freed_memory()
volumes = [torch.ones(2**20) for _ in range(50)]
fence = torch.ones(2**10)
full = resident()
del volumes
kept = resident()
give_back_freed_memory()
print(full - kept, full - resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists() or sys.platform != "linux", reason="looks into /proc")
def test_freed_volumes_are_kept_until_they_are_given_back() -> None:
    run = [sys.executable, "-c", PROGRAM]
    at_once, in_the_end = map(int, subprocess.run(run, capture_output=True, text=True, check=True).stdout.split())
    assert at_once < 20 * 2**20
    assert in_the_end > 180 * 2**20

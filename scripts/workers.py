# SPDX-License-Identifier: Apache-2.0
"""Processes of their own that the benchmark measures in."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BENCHMARK = Path(__file__).with_name("benchmark.py")


class Worker:
    """A process of its own that runs one task each time it is asked."""

    def __init__(
        self, arguments: argparse.Namespace, task: dict[str, Any], environment: Mapping[str, str] | None = None
    ) -> None:
        size = [str(n) for n in arguments.size]
        command = [sys.executable, "-W", "ignore", str(BENCHMARK), "worker"]
        command += ["--threads", str(arguments.threads), "--size", *size, "--task", json.dumps(task)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self) -> dict[str, float]:
        """One run: CPU and wall seconds, and peak memory of the process so far."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print("run", file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError("A worker of the benchmark ended early; its own message is above.")
        result: dict[str, float] = json.loads(line)
        return result

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def resident(field: str) -> float:
    """Bytes of resident memory of this process now (VmRSS) or at the peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(field))

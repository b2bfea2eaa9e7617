# SPDX-License-Identifier: Apache-2.0
"""A training step on cores that are shared: alone and beside processes that never rest."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.threads import WAITING
from scripts.workers import Worker

# The training of scripts/demo.sh.
SIZE, CHANNELS = (48, 56, 48), 8
BUSY = 2


def contention(arguments: argparse.Namespace) -> list[list[str]]:
    """Rows of a table: where the step runs, CPU and wall seconds, the fair share of the latter, and their ratio.

    Fair is what a scheduler owes that treats all processes alike: CPU seconds times processes over cores, and alone
    no less than the CPU seconds over the threads.
    """
    arguments.size, arguments.channels = SIZE, CHANNELS
    default = {name: text for name, text in os.environ.items() if name not in WAITING}
    default["OMP_NUM_THREADS"] = str(arguments.threads)
    rows = []
    for form, environment in (("threads as torch starts them", default), ("ours", dict(os.environ))):
        for busy in (0, BUSY):
            worker = Worker(arguments, {"variant": "ours, float32", "what": "training step"}, environment)
            with _busy(busy):
                runs = [worker.run() for _ in range(1 + (arguments.repeats or 5))][1:]
            worker.close()
            cpu, wall = (statistics.median(run[name] for run in runs) for name in ("cpu", "wall"))
            fair = cpu * max(1 / arguments.threads, (1 + busy) / _cores())
            rows.append([form, str(busy), *(f"{number:.2f}" for number in (cpu, wall, fair, wall / fair))])
    return rows


@contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _cores() -> int:
    return len(os.sched_getaffinity(0))

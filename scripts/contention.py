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

    Fair is what a scheduler owes that treats all processes alike: the CPU seconds of the step in one thread, where none
    waits awake, times processes over cores.
    """
    arguments.size = SIZE
    ours = dict(os.environ)
    default = {name: text for name, text in ours.items() if name not in WAITING}
    work = _seconds(arguments, {**ours, "OMP_NUM_THREADS": "1"}, 0)[0]
    rows = []
    for form, environment in (("threads wait as by default", default), ("ours", ours)):
        for busy in (0, BUSY):
            cpu, wall = _seconds(arguments, environment, busy)
            fair = work * (1 + busy) / _cores()
            rows.append([form, str(busy), *(f"{number:.2f}" for number in (cpu, wall, fair, wall / fair))])
    return rows


def _seconds(arguments: argparse.Namespace, environment: dict[str, str], busy: int) -> tuple[float, float]:
    """Median CPU and wall seconds of a step."""
    chosen = argparse.Namespace(**{**vars(arguments), "threads": int(environment["OMP_NUM_THREADS"])})
    task = {"method": "eoir", "variant": "ours, float32", "what": "training step", "arguments": {"channels": CHANNELS}}
    worker = Worker(chosen, task, environment)
    with _busy(busy):
        runs = [worker.run() for _ in range(1 + (arguments.repeats or 5))][1:]
    worker.close()
    return statistics.median(run["cpu"] for run in runs), statistics.median(run["wall"] for run in runs)


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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# SPDX-License-Identifier: Apache-2.0
"""One pair by one method, in a process of its own: ``baseline_worker.py METHOD FOLDER``.

A package's memory and threads are its own there, and its environment may be: this module needs NumPy alone.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.classical import METHODS

# Windows lacks it.
resource = importlib.import_module("resource") if importlib.util.find_spec("resource") else None


def _cpu_seconds() -> float:
    """Processor time of all threads, and of children that have ended."""
    if resource is None:
        return time.process_time()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_megabytes() -> float:
    """Largest resident memory of this process, in 10^6 bytes."""
    # The resource module's figure starts with what the parent held.
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6
    except (OSError, StopIteration):
        if resource is None:
            return math.nan
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def main(name: str, folder: Path) -> None:
    """Register what lies in ``images.npz`` of a folder; leave ``result.npz`` and ``cost.json`` there."""
    request = json.loads((folder / "request.json").read_text())
    threads = request["threads"]
    method = METHODS[name]
    for module in method.modules:
        importlib.import_module(module)
    with np.load(folder / "images.npz") as images:
        moving, fixed = images["moving"], images["fixed"]
    used, started = _cpu_seconds(), time.perf_counter()
    ddf, warped = method.register(moving, fixed, tuple(request["spacing"]), threads, request["options"])
    cost = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": _cpu_seconds() - used,
        "peak_memory_mb": _peak_megabytes(),
    }
    np.savez(folder / "result.npz", ddf=ddf, warped=warped)
    (folder / "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

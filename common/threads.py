# SPDX-License-Identifier: Apache-2.0
"""How many threads compute, and how long they wait awake. Imports no torch: it has to come first."""

from __future__ import annotations

import os
import sys

import loky

# Any of these says that the user has decided.
NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Turns of the loop in which a thread of GNU's OpenMP, which torch brings along on Linux, waits awake before it sleeps:
# a tenth of a millisecond, where 300,000 turns are usual. With fewer, waking costs more than is won on free cores.
SPINS = 3_000


def share_cores() -> bool:
    """Set the environment of threads for a machine that is not ours alone, as far as the user has not.

    ``OMP_NUM_THREADS`` becomes the number of physical cores that this process may use: those of its affinity
    (``taskset``, Slurm), no more than the processor time that its container is granted (cgroups). torch by itself
    knows nothing of the latter. ``GOMP_SPINCOUNT`` makes threads that wait for others sleep soon: by default they keep
    busy for many milliseconds just the core that the others need where another process runs.

    Returns:
        Whether something was set that comes too late for this process, because torch has been loaded. Processes that
        it starts see it.
    """
    settings = {}
    if not os.environ.keys() & set(NUMBER):
        settings["OMP_NUM_THREADS"] = str(loky.cpu_count(only_physical_cores=True))
    if not os.environ.keys() & set(WAITING):
        settings["GOMP_SPINCOUNT"] = str(SPINS)
    os.environ.update(settings)
    return bool(settings) and "torch" in sys.modules

# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps the memory of freed volumes."""

from __future__ import annotations

import ctypes
import sys

# Names of glibc's malloc.h: parameters of mallopt.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
# Larger volumes go back to the kernel at once. Kept, they would leave gaps that nothing else fits into: a training step
# of EOIR then needs a quarter more memory. Smaller ones are most of the allocations.
LARGEST_KEPT = 64 * 2**20


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed volumes below 64 MiB for the next ones.

    By default each volume is mapped afresh and the kernel clears its pages one by one, which can cost several times
    what filling them does. Elsewhere than under glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
    mallopt(TRIM_THRESHOLD, 2**31 - 1)

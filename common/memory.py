# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps the memory of freed volumes."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

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
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let glibc give the kernel what it has kept until now.

    For the moments before the most is alive: gaps that nothing fits into would add to it. The next volumes pay for new
    pages. Elsewhere than under glibc this does nothing.
    """
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None
    return function

# SPDX-License-Identifier: Apache-2.0
"""Percentiles of many values without sorting all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_CELLS = 1 << 10


def percentiles(values: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """The values below which there are given shares of all, exactly, with linear interpolation.

    On the CPU the values are first counted in cells between the smallest and the largest, so that only those in the
    cell of a percentile are ordered; elsewhere, where that would wait for values, ``torch.kthvalue`` sees all.

    Args:
        values: (n,), at least one.
        shares: from 0 to 1.

    Returns:
        A scalar tensor for each share.
    """
    count = values.numel()
    cells = _Cells(values) if values.is_cpu else None
    found = []
    for share in shares:
        below = math.floor(share * (count - 1))
        first, last = below, min(below + 1, count - 1)
        chosen, skipped = (values, 0) if cells is None else cells.around(first, last)
        pair = [chosen.kthvalue(rank - skipped + 1).values for rank in (first, last)]
        found.append(torch.lerp(pair[0], pair[1], share * (count - 1) - below))
    return found


class _Cells:
    """Values by the cell of equal width that they are in."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        low, high = values.aminmax()
        extent = float(high - low)
        # One cell holds all where there is no finite range. Rounding keeps the order.
        self.known = 0 < extent < math.inf
        if self.known:
            self.cells = ((values - low) * ((_CELLS - 1) / extent)).to(torch.int16)
            self.ends = torch.bincount(self.cells, minlength=_CELLS).cumsum(0)

    def around(self, first: int, last: int) -> tuple[Tensor, int]:
        """All values of the cells from that of one rank to that of another, and how many values come before them."""
        if not self.known:
            return self.values, 0
        start, end = (int(torch.searchsorted(self.ends, rank, right=True)) for rank in (first, last))
        chosen = self.cells == start if start == end else (self.cells >= start) & (self.cells <= end)
        return self.values[chosen], int(self.ends[start - 1]) if start else 0

# SPDX-License-Identifier: Apache-2.0
"""Windows that share each voxel among the few bins of a histogram about its intensity."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Full width at half maximum of a Gaussian in standard deviations, to the digits of VFA's published code.
_FULL_WIDTH = 2.355


class Window(ABC):
    """In which bins a voxel counts, as a function of its place: intensities run from ``start`` to ``start + extent``.

    A voxel has a cell, ``first`` to ``last``, and counts in ``taps`` bins, the first of which is ``cell - first``, with
    weights of sum 1.
    """

    bins: int
    taps: int
    first: int
    start = 0.0
    extent: float

    @property
    def last(self) -> int:
        """The last cell."""
        return self.bins - self.taps + self.first

    @property
    def offsets(self) -> range:
        """From the cell to the bins that a voxel counts in."""
        return range(-self.first, self.taps - self.first)

    def split(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Cells, as whole numbers of a floating type, and the places relative to them; reuses ``places``."""
        cells = places.floor().clamp_(self.first, self.last)
        return cells, places.sub_(cells)

    @abstractmethod
    def weights(self, inside: Tensor) -> Tensor:
        """(taps, voxels), of places (voxels,) relative to the cell."""

    @abstractmethod
    def slopes(self, inside: Tensor, weights: Tensor) -> Tensor:
        """Derivative of the weights by the place, (taps, voxels)."""


class GaussianWindow(Window):
    """A Gaussian of full width 1 at half maximum about the centre of each bin, over the sum of those of all bins.

    The next bin to those taken would have a share of 6e-8 at most, or of 1e-14 in double precision.

    Args:
        bins: from 2 on.
        like: gives the type and device of places.
    """

    def __init__(self, bins: int, like: Tensor) -> None:
        reach = 3 if like.dtype == torch.float64 else 2
        self.bins, self.extent, self.taps = bins, float(bins), min(2 * reach + 1, bins)
        self.first = (self.taps - 1) // 2
        self._offsets = torch.tensor(self.offsets, dtype=like.dtype, device=like.device)[:, None]

    def weights(self, inside: Tensor) -> Tensor:
        """See :class:`Window`."""
        weights = inside - (self._offsets + 0.5)
        weights.square_().mul_(-0.5 * _FULL_WIDTH**2).exp_()
        return weights.mul_(weights.sum(0).reciprocal_())

    def slopes(self, inside: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Window`."""
        scaled = _FULL_WIDTH**2 * self._offsets
        return (scaled - scaled.T @ weights).mul_(weights)


class CubicWindow(Window):
    """Cubic B-splines (Mattes et al. 2003), whose outermost bins are room for those next to them.

    Args:
        bins: from 4 on.
    """

    taps, first, start = 4, 1, 1.0

    def __init__(self, bins: int) -> None:
        self.bins, self.extent = bins, float(bins - 3)

    def weights(self, inside: Tensor) -> Tensor:
        """See :class:`Window`."""
        beyond = 1 - inside
        near, far = inside.square(), beyond.square()
        outer = far * beyond / 6, near * inside / 6
        return torch.stack((outer[0], 2 / 3 - near + 3 * outer[1], 2 / 3 - far + 3 * outer[0], outer[1]))

    def slopes(self, inside: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Window`."""
        beyond = 1 - inside
        near, far = inside.square() / 2, beyond.square() / 2
        return torch.stack((-far, 3 * near - 2 * inside, 2 * beyond - 3 * far, near))


class BoxWindow(Window):
    """Each voxel in one bin; without a derivative.

    Args:
        bins: from 1 on.
    """

    taps, first = 1, 0

    def __init__(self, bins: int) -> None:
        self.bins, self.extent = bins, float(bins)

    def weights(self, inside: Tensor) -> Tensor:
        """See :class:`Window`."""
        return torch.ones_like(inside)[None]

    def slopes(self, inside: Tensor, weights: Tensor) -> Tensor:
        """See :class:`Window`."""
        return torch.zeros_like(weights)

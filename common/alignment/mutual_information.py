# SPDX-License-Identifier: Apache-2.0
"""Mutual information of two scans of any grids, as a differentiable function of the affine map between their worlds.

The histogram is smooth (Mattes et al. 2003) and taken at a fixed random set of points, so that the same map always has
the same value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from common.checks import InputError
from common.spatial.foreground import foreground
from common.spatial.points import sample_at
from common.spatial.world import Grid

_BINS = 32
_SEED = 0
SMALLEST_OVERLAP = 0.1
"""Fraction of the points that have to meet the moving scan for a figure to mean anything."""


class BlockScan:
    """Block means of a scan, and what of it is background.

    Args:
        image: (1, *grid.shape).
        grid: where its voxels lie.
        spacing: side of the blocks in millimetres; finer scans are averaged, coarser ones kept.
        name: what messages call the scan.

    Raises:
        InputError: when there is nothing but one value.
    """

    def __init__(self, image: Tensor, grid: Grid, spacing: float, name: str) -> None:
        blocks = [min(n, max(1, round(spacing / mm))) for n, mm in zip(grid.shape, grid.spacing, strict=True)]
        self.values = F.avg_pool3d(image.float()[None], blocks, blocks)
        to_first = torch.eye(4, dtype=torch.float64)
        for axis, block in enumerate(blocks):
            to_first[axis, axis], to_first[axis, 3] = block, (block - 1) / 2
        self.affine, self.flat = grid.affine @ to_first, grid.flat
        self.low, self.high = self._range(name)
        self.foreground = foreground(self.values) & (self.values > self.low + 0.02 * (self.high - self.low))
        self.shape = tuple(self.values.shape[2:])

    def _range(self, name: str) -> tuple[float, float]:
        """Robust smallest and largest value; the largest counts only what is not the smallest, often most of a scan."""
        for low in (float(torch.quantile(self.values, 0.005)), float(self.values.min())):
            above = self.values[self.values > low]
            if above.numel():
                return low, float(torch.quantile(above, 0.995))
        raise InputError(f"All voxels of {name} have the same value: there is nothing to align.")

    def in_bins(self) -> Tensor:
        """(1, 1, *spatial) values in units of histogram bins, a bin of room at either end for the smooth histogram."""
        unit = (self.values.clamp(self.low, self.high) - self.low) / (self.high - self.low)
        return 1 + unit * (_BINS - 3)

    def open_faces(self) -> Iterator[tuple[bool, bool]]:
        """Per axis, whether the object is cut off at the first and at the last plane."""
        for axis in range(2 if self.flat else 3):
            for_axis = self.foreground.float().movedim(2 + axis, 0)
            yield bool(for_axis[0].mean() > 0.02), bool(for_axis[-1].mean() > 0.02)

    def centre_of_mass(self) -> Tensor:
        """(3,) world position."""
        weights = (self.values.clamp(self.low, self.high) - self.low).double()[0, 0]
        sums = [weights.movedim(axis, 0).flatten(1).sum(1) for axis in range(3)]
        centre = [float((line * torch.arange(len(line)).to(line)).sum() / line.sum()) for line in sums]
        return self._world(centre)

    def centre(self) -> Tensor:
        """(3,) world position of the grid's centre."""
        return self._world([(n - 1) / 2 for n in self.shape])

    def _world(self, voxel: list[float]) -> Tensor:
        return self.affine[:3, :3] @ torch.tensor(voxel, dtype=torch.float64) + self.affine[:3, 3]


class ScanPair:
    """Two scans at one resolution and the points at which they are compared.

    Args:
        moving: any grid.
        fixed: the points are drawn in its foreground.
        side: cube root of the number of points.

    Attributes:
        flat: whether the scans are images of two dimensions.
        centre: (3,) mean of the points, in the fixed world.
        radius: root mean square distance of the points from it, millimetres.
    """

    def __init__(self, moving: BlockScan, fixed: BlockScan, side: int) -> None:
        self.fixed, self.moving, self.flat = fixed, moving, fixed.flat
        # Two voxels around the object, so that its outline counts.
        near = F.max_pool3d(fixed.foreground.float(), 5, 1, 2)[0, 0].nonzero()
        generator = torch.Generator().manual_seed(_SEED)
        chosen = torch.randint(len(near), (side**3,), generator=generator).to(near.device)
        # Points on voxel centres would favour maps that put grids onto each other, where interpolation blurs nothing.
        jitter = torch.rand(side**3, 3, generator=generator, dtype=torch.float64).to(near.device) - 0.5
        if self.flat:
            jitter[:, 2] = 0
        voxels = near[chosen] + jitter
        self._at_fixed = _smooth_bins(sample_at(fixed.in_bins(), voxels.float()[None]).flatten())
        self._moving_values = moving.in_bins()
        self._from_world = torch.linalg.inv(moving.affine).to(near.device)
        self._faces = list(moving.open_faces())
        self._points = fixed.affine[:3, :3].to(near.device) @ voxels.T
        self._points += fixed.affine[:3, 3:].to(near.device)
        self.centre = self._points.mean(1).cpu()
        self.radius = float((self._points - self._points.mean(1, keepdim=True)).square().sum(0).mean().sqrt())

    def information(self, matrix: Tensor) -> tuple[Tensor, float]:
        """Mutual information in nats under a map of the world, and the overlap.

        Args:
            matrix: (4, 4) float64, fixed world to moving world; may require a gradient.

        Returns:
            A scalar, and the fraction of the points that meet the moving scan.
        """
        total = self._from_world @ matrix.to(self._from_world)
        voxels = total[:3, :3] @ self._points + total[:3, 3:]
        values = sample_at(self._moving_values, voxels.T.float()[None])
        seen = self._seen(voxels)
        joint = (self._at_fixed * seen[:, None]).T @ _smooth_bins(values.flatten())
        joint = joint / joint.sum().clamp(min=1e-6)
        information = _entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint)
        return information, float(seen.detach().mean())

    def _seen(self, voxels: Tensor) -> Tensor:
        """(points,) weight of each point: 0 where the moving scan was cut off, falling within one voxel.

        Beyond a face that shows background only, there is more of it: such points count.
        """
        seen = torch.ones_like(voxels[0])
        for axis, (first, last) in enumerate(self._faces):
            position = voxels[axis]
            if first:
                seen = seen * (1 + position).clamp(0, 1)
            if last:
                seen = seen * (self.moving.shape[axis] - position).clamp(0, 1)
        return seen.float()

    def similarity(self, matrix: Tensor) -> tuple[float, float]:
        """Informational correlation (Linfoot 1957) in [0, 1], 0 where the scans hardly meet; and the overlap."""
        with torch.no_grad():
            information, overlap = self.information(matrix)
        value = math.sqrt(max(0.0, 1 - math.exp(-2 * max(0.0, float(information)))))
        return (value if overlap >= SMALLEST_OVERLAP else 0.0), overlap


def _smooth_bins(values: Tensor) -> Tensor:
    """(N, bins) cubic B-spline weights of values in units of bins (Mattes et al. 2003)."""
    # Each value touches four bins; the last value's cell is the one before it.
    first = values.detach().floor().clamp(1, _BINS - 3).long() - 1
    bins = first[:, None] + torch.arange(4, device=values.device)
    distance = (values[:, None] - bins).abs()
    far = (2 - distance).clamp(min=0)
    near = (1 - distance).clamp(min=0)
    weights = (far * far * far - 4 * near * near * near) / 6
    return weights.new_zeros(len(values), _BINS).scatter(1, bins, weights)


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=1e-12).log()).sum()

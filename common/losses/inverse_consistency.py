# SPDX-License-Identifier: Apache-2.0
"""Penalties on what is left of the way there and back, which make maps regular without asking it of them.

Papers: H. Greer et al., "ICON", ICCV 2021, arXiv 2105.04459; L. Tian et al., "GradICON", CVPR 2023, arXiv 2206.05897.
Both measure in units of the extent of each axis, from the first voxel's centre to the last one's, and at points that
lie about the voxels, by normal noise of one voxel of the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.noise import normal_noise
from common.spatial import identity_grid
from common.spatial.maps import PointMap

STEP = 1e-3
"""Of the differences, in extents: part of the method. A derivative of the interpolated map would be another penalty,
which does not see the kinks between its cells."""


class InverseConsistencyLoss(nn.Module):
    """Mean squared distance from a point to where both maps, one after the other, bring it, for both orders (ICON).

    The weights of the published recipes are 2048 (2D) and 3600.
    """

    def forward(self, there: PointMap, back: PointMap, fixed: Tensor, draw: Tensor) -> Tensor:
        """Penalise.

        Args:
            there: points (B, N, d) in voxels of the fixed image to those of the moving image (``map``).
            back: the other way (``inverse_map``).
            fixed: (B, 1, *spatial), whose grid counts.
            draw: (B, 3), seed, epoch and index of each item, of which the noise is a function.

        Returns:
            A scalar >= 0: the sum of two means, over the batch, components and points.
        """
        return self.at(there, back, fixed, normal_noise(draw, (1, fixed.ndim - 2, *fixed.shape[2:])))

    def at(self, there: PointMap, back: PointMap, fixed: Tensor, noise: Tensor) -> Tensor:
        """As :meth:`forward`, with the noise (1, d, *spatial)."""
        points = _points(fixed, noise)
        extent = _extent(fixed)
        left = [(points - first(second(points))) / extent for first, second in ((there, back), (back, there))]
        return left[0].square().mean() + left[1].square().mean()


class GradientInverseConsistencyLoss(nn.Module):
    """Sum over the axes of mean squared differences of what the way back and there again leaves (GradICON).

    Only this order counts: from a point of the moving image to the fixed one and back. Derivatives are differences over
    :data:`STEP`. The weight of the published recipes is 0.2 to 1.5, beside :class:`common.losses.GaussianLNCCLoss` of
    both directions; beside other measures it has to be found anew.

    Args:
        every: takes every so many voxels along each axis, and noise of so many voxels: 2 as in uniGradICON, 1 is the
            dense form.

    Raises:
        InputError: when it is no whole number from 1 on.
    """

    def __init__(self, every: int = 2) -> None:
        super().__init__()
        if not isinstance(every, int) or every < 1:
            raise InputError(f"GradientInverseConsistencyLoss got every={every!r}; give a whole number from 1 on.")
        self.every = every

    def forward(self, there: PointMap, back: PointMap, fixed: Tensor, draw: Tensor) -> Tensor:
        """Penalise; arguments as those of :meth:`InverseConsistencyLoss.forward`, returns a scalar >= 0."""
        size = [-(-n // self.every) for n in fixed.shape[2:]]
        return self.at(there, back, fixed, normal_noise(draw, (1, len(size), *size)))

    def at(self, there: PointMap, back: PointMap, fixed: Tensor, noise: Tensor) -> Tensor:
        """As :meth:`forward`, with the noise (1, d, *points of each axis)."""
        extent = _extent(fixed)
        points = _points(fixed, noise, self.every)
        # The point itself, and one step along each axis.
        steps = STEP * torch.cat([torch.zeros_like(extent)[None], extent.diag()])
        moved = (points[:, None] + steps[:, None]).flatten(1, 2)
        left = ((moved - there(back(moved))) / extent).unflatten(1, (len(steps), -1))
        return ((left[:, 1:] - left[:, :1]) / STEP).square().mean((0, 2, 3)).sum()


def _extent(fixed: Tensor) -> Tensor:
    """(d,), voxels from the first centre to the last of each axis, 1 along an axis of one voxel."""
    sizes: Sequence[int] = [max(n - 1, 1) for n in fixed.shape[2:]]
    return torch.stack([torch.as_tensor(float(n), device=fixed.device) for n in sizes])


def _points(fixed: Tensor, noise: Tensor, every: int = 1) -> Tensor:
    """(B, N, d), every so many voxels along each axis, moved by the noise times as many voxels of the last axis."""
    size = fixed.shape[2:]
    grid = identity_grid(size, fixed.device)
    for axis in range(2, grid.ndim):
        grid = grid.index_select(axis, torch.arange(0, grid.shape[axis], every, device=grid.device))
    spread = every * _extent(fixed) / size[-1]
    points = (grid.flatten(2) + spread[:, None] * noise.to(fixed.device).flatten(2)).movedim(1, 2)
    return points.expand(len(fixed), -1, -1)

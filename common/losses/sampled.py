# SPDX-License-Identifier: Apache-2.0
"""Losses of maps at random points, of which no field is ever made, and that of the codes which such maps come from.

Paper: L. Tian et al., "NePhi", ECCV 2024, arXiv 2309.07322.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.noise import normal_noise
from common.spatial import sample_at
from common.spatial.maps import PointMap, map_with_derivative


class SampledLoss(nn.Module):
    """A loss of two images, of their values at random points alone: the moving image where the map takes them.

    Images are interpolated linearly, also the fixed one, and are 0 outside. The points are a function of the draw, one
    set for all pairs of a batch.

    Args:
        loss: takes values (B, C, N) of the warped and of the fixed image, as :class:`common.losses.NCCLoss` does.
        fraction: of the image's voxels that there are points.
        most: points.
        stream: tells terms apart that shall see different points at the same draw.

    Raises:
        InputError: when there could be no points.
    """

    def __init__(self, loss: nn.Module, fraction: float = 0.02, most: int = 100_000, stream: int = 0) -> None:
        super().__init__()
        _check("SampledLoss", fraction, most)
        self.loss = loss
        self.fraction, self.most, self.stream = fraction, most, stream

    def forward(self, function: PointMap, moving: Tensor, fixed: Tensor, draw: Tensor) -> Tensor:
        """Compare the images.

        Args:
            function: points (B, N, d) in voxels of the fixed image to those of the moving image: ``map``. For the way
                back, which takes ``inverse_map``, the images change places.
            moving: (B, C, *spatial).
            fixed: the same shape.
            draw: (B, 3), seed, epoch and index of each item.

        Returns:
            What the loss returns.
        """
        size = fixed.shape[2:]
        count = min(self.most, max(1, int(self.fraction * math.prod(size))))
        return self.at(function, moving, fixed, random_points(draw, count, size, self.stream))

    def at(self, function: PointMap, moving: Tensor, fixed: Tensor, points: Tensor) -> Tensor:
        """As :meth:`forward`, at points (1, N, d) in voxels."""
        points = points.expand(len(fixed), -1, -1)
        result: Tensor = self.loss(sample_at(moving, function(points), "zeros"), sample_at(fixed, points, "zeros"))
        return result


class JacobianConsistencyLoss(nn.Module):
    """Mean square of the derivative of what one map after another leaves: NePhi's gradient inverse consistency.

    With ``E(x) = second(first(x)) - x`` it is the mean over the d x d entries of the Jacobian of E, in coordinates that
    go from -1 to 1 along each axis. Unlike :class:`common.losses.GradientInverseConsistencyLoss`, which takes
    differences, it is exact, a mean over both axes of the Jacobian, and looks at few random points. The published
    weight is 10, of the mean of both orders.

    Args:
        fraction: of the image's voxels that there are points.
        least: points, however small the image is.
        most: points.
        stream: as in :class:`SampledLoss`.

    Raises:
        InputError: when there could be no points.
    """

    def __init__(self, fraction: float = 1e-4, least: int = 10, most: int = 500, stream: int = 0) -> None:
        super().__init__()
        _check("JacobianConsistencyLoss", fraction, min(least, most))
        self.fraction, self.least, self.most, self.stream = fraction, least, most, stream

    def forward(self, first: PointMap, second: PointMap, image: Tensor, draw: Tensor) -> Tensor:
        """Penalise.

        Args:
            first: points (B, N, d) in voxels to points: ``map``, or ``inverse_map`` for the other order.
            second: the other one.
            image: (B, C, *spatial), on whose grid the first map starts.
            draw: (B, 3), seed, epoch and index of each item, of which the points are a function.

        Returns:
            A scalar >= 0. It can be differentiated once.
        """
        size = image.shape[2:]
        count = min(self.most, max(self.least, int(self.fraction * math.prod(size))))
        return self.at(first, second, image, random_points(draw, count, size, self.stream))

    def at(self, first: PointMap, second: PointMap, image: Tensor, points: Tensor) -> Tensor:
        """As :meth:`forward`, at points (1, N, d) in voxels."""
        middle, inner = map_with_derivative(first, points.expand(len(image), -1, -1))
        _, outer = map_with_derivative(second, middle)
        extent = _extent(image.shape[2:], points)
        identity = torch.eye(len(extent), device=extent.device, dtype=extent.dtype)
        left = outer @ inner - identity
        return (left * extent / extent[:, None]).square().mean()


class LatentLoss(nn.Module):
    """Mean length of the codes, of those of pairs and of those of the nodes of their grids (published weight 0.01)."""

    def forward(self, latent: Tensor, local_latent: Tensor) -> Tensor:
        """Penalise codes (B, g) and (B, l, *grid); a code of zeros has no gradient."""
        return latent.norm(dim=1).mean() + local_latent.norm(dim=1).mean()


def random_points(draw: Tensor, count: int, size: Sequence[int], stream: int = 0) -> Tensor:
    """Points that lie anywhere in an image, the same on any device.

    Args:
        draw: (B, 3) integers, seed, epoch and index of each item; the first counts.
        count: of the points.
        size: spatial size of the image.
        stream: points of another number are others.

    Returns:
        (1, count, d), in voxels, from the centre of the first voxel to that of the last along each axis.
    """
    numbers = torch.cat([draw[:1], torch.full_like(draw[:1, :1], stream)], dim=1)
    uniform = torch.special.ndtr(normal_noise(numbers, (1, count, len(size))))
    return uniform * torch.stack([torch.as_tensor(n - 1.0, device=uniform.device) for n in size])


def _extent(size: Sequence[int], like: Tensor) -> Tensor:
    """(d,), voxels from the first centre to the last of each axis, 1 along an axis of one voxel."""
    return torch.stack([torch.as_tensor(max(n - 1.0, 1.0), device=like.device, dtype=like.dtype) for n in size])


def _check(loss: str, fraction: float, most: int) -> None:
    if not 0 < fraction <= 1 or most < 1:
        raise InputError(f"{loss} got fraction {fraction} and {most} points; give a fraction up to 1, and one or more.")

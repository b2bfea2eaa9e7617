# SPDX-License-Identifier: Apache-2.0
"""How far the posterior of a velocity field is from a prior of smooth fields, its gradient computed with the value.

Paper: A. Dalca et al., "Unsupervised learning for fast probabilistic diffeomorphic registration", MICCAI 2018, arXiv
1805.04605, equation 6. Repository: voxelmorph/voxelmorph (Apache-2.0), whose form this is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient
from common.losses.smoothness import GradientLoss


class VelocityKLLoss(nn.Module):
    r"""Kullback-Leibler divergence of independent normal velocities from a prior that joins neighbours.

    .. math::
        \frac d2\,\mathrm{mean}\,(\lambda D \sigma^2 - \log \sigma^2)
        + \frac \lambda 4 \sum_a \mathrm{mean}\,(\mu(x + e_a) - \mu(x))^2

    up to a constant, with D the number of neighbours of a voxel along the axes that lie in the grid. The means run over
    batch, channels and voxels, or places where the difference exists. Values may be negative.

    Args:
        prior_lambda: weight of the prior's precision. Published with a mean squared error that is divided by the
            variance of the image's noise: 10 with a standard deviation of 0.02, or 25 with 0.01.

    Raises:
        InputError: when ``prior_lambda`` is negative, or, in :meth:`forward`, when the shapes differ or are none of
            fields.
    """

    def __init__(self, prior_lambda: float) -> None:
        super().__init__()
        if not prior_lambda >= 0:
            raise InputError(f"prior_lambda is {prior_lambda}; give a number from 0 on.")
        self.prior_lambda = prior_lambda
        self.smoothness = GradientLoss("l2")

    def forward(self, velocity: Tensor, log_sigma: Tensor) -> Tensor:
        """Penalise a posterior.

        Args:
            velocity: its mean (B, d, *spatial), 2D or 3D, voxels of its grid.
            log_sigma: logarithm of its standard deviation, of the same shape. Published networks have the logarithm of
                the variance, twice as much.

        Returns:
            Scalar, float32 (float64 if an input is).
        """
        if velocity.shape != log_sigma.shape or velocity.ndim not in (4, 5):
            raise InputError(
                f"VelocityKLLoss got a velocity of shape {tuple(velocity.shape)} and log_sigma of shape "
                f"{tuple(log_sigma.shape)}; pass (batch, channels, *spatial) of one grid, 2D or 3D."
            )
        dims = velocity.ndim - 2
        dtype = computing_dtype(velocity, log_sigma)
        smoothness = self.smoothness(velocity.to(dtype))
        return 0.25 * self.prior_lambda * dims * smoothness + self._spread(log_sigma.to(dtype))

    def _spread(self, log_sigma: Tensor) -> Tensor:
        """What the standard deviations cost."""
        dims = log_sigma.ndim - 2
        share = 0.5 * dims / log_sigma.numel()
        wanted = needs_gradient(log_sigma)
        with torch.no_grad(), torch.autocast(log_sigma.device.type, enabled=False):
            precision = self.prior_lambda * _neighbours(log_sigma)
            loose = (2 * log_sigma).exp_().mul_(precision)
            value = share * (loose.sum() - 2 * log_sigma.sum())
            gradient = loose.sub_(1).mul_(2 * share) if wanted else None
        return with_gradient(value, [log_sigma], [gradient])


def _neighbours(field: Tensor) -> Tensor:
    """Number of neighbours along the axes of each voxel, (*spatial)."""
    count = field.new_zeros(())
    for axis, n in enumerate(field.shape[2:]):
        place = torch.arange(n, device=field.device)
        along = (place > 0).to(field.dtype) + (place < n - 1)
        count = count + along.view(-1, *[1] * (field.ndim - 3 - axis))
    return count

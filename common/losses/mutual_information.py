# SPDX-License-Identifier: Apache-2.0
"""Mutual information of two images from a joint histogram with soft bins, its gradient computed with the value."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import computing_dtype, needs_gradient, with_gradient

# Voxels at a time: their weights in all bins stay in the cache; accelerators want few launches.
_CPU_PIECE = 1 << 14
_ACCELERATOR_PIECE = 1 << 22
# Full width at half maximum of a Gaussian in standard deviations, to the digits of the published code.
_FULL_WIDTH = 2.355
# As in the published code, which adds the precision of float32 whatever it computes in.
_EPS, _TINY = 2.0**-23, 1e-10


class MutualInformationLoss(nn.Module):
    r"""Negative mutual information, with the bins of VFA's recipe for images of two kinds.

    The intensities of each image are clamped to the range between its 1st and its 99th percentile, which is cut into
    bins of width h. A voxel belongs to bin k with the weight of a Gaussian around the bin's centre, of standard
    deviation h / 2.355, the weights of a voxel adding up to 1. With the mean over voxels of the products as p(k, l),

    .. math::
        -\sum_{k, l} p(k, l) \log\Big(\frac{p(k, l)}{p(k)\,p(l) + \epsilon} + 10^{-10}\Big)

    The mean is that over the samples of the batch. Clamped voxels have no gradient, and neither have percentiles.

    Args:
        bins: number of bins of each image.

    Raises:
        InputError: for fewer than two bins.
    """

    def __init__(self, bins: int = 32) -> None:
        super().__init__()
        if bins < 2:
            raise InputError(f"MutualInformationLoss got bins={bins}; choose 2 or more.")
        self.bins = bins

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare images.

        Args:
            pred: (B, C, *spatial), intensities of any scale; usually the warped moving image.
            target: the same shape.

        Returns:
            Scalar, at most 0; float32 (float64 if an input is).

        Raises:
            InputError: when the shapes differ.
        """
        if pred.shape != target.shape:
            raise InputError(
                f"MutualInformationLoss got pred of shape {tuple(pred.shape)} and target of shape "
                f"{tuple(target.shape)}; resample one to the other's grid."
            )
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        gradients = [torch.empty_like(x) if needs_gradient(x) else None for x in images]
        value = images[0].new_zeros(())
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            for b in range(pred.shape[0]):
                binned = [_Binned(image[b].flatten(), self.bins) for image in images]
                information, slope = _information(_joint(*binned))
                value -= information / pred.shape[0]
                scaled = -slope / (pred.shape[0] * binned[0].values.numel())
                for i, gradient in enumerate(gradients):
                    if gradient is not None:
                        along = scaled if i == 0 else scaled.T
                        gradient[b] = _gradient(binned[i], binned[1 - i], along).view_as(gradient[b])
        return with_gradient(value, images, gradients)


class _Binned:
    """The voxels of one image and their weights in its bins."""

    def __init__(self, values: Tensor, bins: int) -> None:
        self.values, self.low, self.high = values, _percentile(values, 0.01), _percentile(values, 0.99)
        width = (self.high - self.low) / bins
        # An image of one intensity has no width: all of its voxels are at the same place, which nothing moves.
        self.width = torch.where(width > 0, width, torch.inf)
        self.places = torch.arange(bins, dtype=values.dtype, device=values.device) + 0.5

    def weights(self, part: slice) -> Tensor:
        """(voxels, bins), each row of sum 1."""
        places = (self.values[part].clamp(self.low, self.high) - self.low) / self.width
        return (places[:, None] - self.places).mul_(_FULL_WIDTH).square_().mul_(-0.5).softmax(1)

    def chain(self, part: slice, weights: Tensor, slope: Tensor) -> Tensor:
        """From the derivative by each weight, (voxels, bins), to that by the values."""
        weighted = weights * slope
        spread = weighted @ self.places - weighted.sum(1) * (weights @ self.places)
        values = self.values[part]
        moving = (values >= self.low) & (values <= self.high)
        return spread.mul_(_FULL_WIDTH**2 / self.width).mul_(moving)


def _percentile(values: Tensor, share: float) -> Tensor:
    """With linear interpolation; `torch.quantile` would sort all of the values."""
    below = math.floor(share * (values.numel() - 1))
    pair = [values.kthvalue(min(rank, values.numel())).values for rank in (below + 1, below + 2)]
    return torch.lerp(pair[0], pair[1], share * (values.numel() - 1) - below)


def _parts(values: Tensor) -> Iterator[slice]:
    piece = _CPU_PIECE if values.device.type == "cpu" else _ACCELERATOR_PIECE
    for start in range(0, values.numel(), piece):
        yield slice(start, start + piece)


def _joint(first: _Binned, second: _Binned) -> Tensor:
    """(bins, bins), sum 1."""
    joint = first.values.new_zeros((first.places.numel(), second.places.numel()))
    for part in _parts(first.values):
        joint.addmm_(first.weights(part).T, second.weights(part))
    return joint / first.values.numel()


def _information(joint: Tensor) -> tuple[Tensor, Tensor]:
    """Mutual information of a joint histogram, and its derivative by each of the entries."""
    with torch.enable_grad():
        joint = joint.detach().requires_grad_()
        independent = torch.outer(joint.sum(1), joint.sum(0))
        information = (joint * (joint / (independent + _EPS) + _TINY).log()).sum()
        (slope,) = torch.autograd.grad(information, joint)
    return information.detach(), slope


def _gradient(image: _Binned, other: _Binned, slope: Tensor) -> Tensor:
    """By the values of ``image``, whose bins are the rows of ``slope``."""
    gradient = torch.empty_like(image.values)
    for part in _parts(image.values):
        gradient[part] = image.chain(part, image.weights(part), other.weights(part) @ slope.T)
    return gradient

# SPDX-License-Identifier: Apache-2.0
"""Comparison of images of different kinds by the directions of their edges, its gradient computed with the value.

Paper: E. Haber and J. Modersitzki, "Intensity gradient based registration and fusion of multi-modal images", MICCAI
2006.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from common.checks import InputError
from common.losses.closed_form import check_alike, computing_dtype, needs_gradient, with_gradient
from common.losses.weights import check_weight

# Voxels of one slab: its dozen maps stay in the cache; accelerators want few launches.
_CPU_SLAB = 1 << 17
_ACCELERATOR_SLAB = 1 << 26


class NGFLoss(nn.Module):
    r"""Normalised gradient fields, ``1 - mean(ngf)``: whether edges lie on edges, of whatever sign and height.

    With central differences (one-sided at the border) as gradients of both images, per channel

    .. math::
        ngf = \frac{(\nabla I \cdot \nabla J)^2}{(|\nabla I|^2 + \eta_I^2) (|\nabla J|^2 + \eta_J^2)}, \quad
        \eta_I = \mathrm{edge} \cdot \mathrm{mean} |\nabla I|.

    Gradients well below :math:`\eta` count as noise. The mean in it is that over the voxels where the image is not
    flat, so that neither the unit of the intensities nor the size of an empty background makes a difference. An image
    of one value resembles nothing. The gradient is exact, through :math:`\eta`, too, and cannot be differentiated
    again.

    Args:
        edge: in multiples of the image's mean gradient: higher for images of more noise.

    Raises:
        InputError: when it is not above 0.
    """

    def __init__(self, edge: float = 1.0) -> None:
        super().__init__()
        if not edge > 0:
            raise InputError(f"NGFLoss got edge={edge}; give a number above 0, such as 1.")
        self.edge = edge

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compare two images.

        Args:
            pred: (B, C, *spatial), 2D or 3D, any intensities; usually the warped moving image.
            target: the same shape.
            weight: (B, 1, *spatial) from 0 to 1. A gradient has the least weight of its voxel and of the next ones
                along the axes; a voxel of weight 0 may have any value but NaN and infinity. The mean of each sample is
                weighted; one without weights resembles nothing. None counts all alike.

        Returns:
            Scalar from 0 to 1, float32 (float64 if an image is).

        Raises:
            InputError: when the shapes differ or have another number of axes.
        """
        check_alike("NGFLoss", pred, target)
        if pred.ndim not in (4, 5):
            raise InputError(f"NGFLoss got images of shape {tuple(pred.shape)}; give (batch, channels, *spatial).")
        dtype = computing_dtype(pred, target)
        images = pred.to(dtype), target.to(dtype)
        gradients = [torch.zeros_like(image) if needs_gradient(image) else None for image in images]
        with torch.no_grad(), torch.autocast(pred.device.type, enabled=False):
            volumes = list(images)
            least = torch.ones((), dtype=dtype, device=pred.device).expand(len(pred), 1, *pred.shape[2:])
            if weight is not None:
                check_weight("NGFLoss", pred, weight)
                volumes = [image * (weight > 0) for image in images]
                least = _least_around(weight.to(dtype))
            total = pred.new_zeros((), dtype=torch.float64)
            for b in range(pred.shape[0]):
                for c in range(pred.shape[1]):
                    outputs = [None if gradient is None else gradient[b, c] for gradient in gradients]
                    total += _Pair([volume[b, c] for volume in volumes], least[b, 0], outputs, self.edge).run()
            count = pred.shape[0] * pred.shape[1]
            gradients = [None if gradient is None else gradient.div_(-count) for gradient in gradients]
        return with_gradient((1 - total / count).to(dtype), images, gradients)


class _Pair:
    """One pair of single-channel volumes: its mean ngf, and the gradients of this."""

    def __init__(self, images: Sequence[Tensor], weight: Tensor, outputs: Sequence[Tensor | None], edge: float) -> None:
        self.images, self.weight, self.outputs, self.edge = images, weight, outputs, edge
        self.size, budget = len(weight), _CPU_SLAB if weight.is_cpu else _ACCELERATOR_SLAB
        self.depth = max(1, budget // math.prod(weight.shape[1:]))
        self.whole = _inverse(weight.sum(dtype=torch.float64)).to(weight.dtype)

    def run(self) -> Tensor:
        """Mean of ngf in float64; adds the gradients to ``outputs``."""
        levels, slopes = zip(*[self._level(i) for i in (0, 1)], strict=True)
        value = self.whole.new_zeros((), dtype=torch.float64)
        by_level = [torch.zeros_like(value), torch.zeros_like(value)]
        for block, weight in self._slabs():
            value += self._compare(block, weight, levels, by_level)
        for i, output in enumerate(self.outputs):
            if output is not None:
                output.addcmul_(slopes[i], (by_level[i] * self.edge).to(output.dtype))
        return value

    def _slabs(self) -> Iterator[tuple[slice, Tensor]]:
        """Planes with one more on each side, and the weights, which are 0 there."""
        for start in range(0, self.size, self.depth):
            stop = min(start + self.depth, self.size)
            block = slice(max(start - 1, 0), min(stop + 1, self.size))
            weight = self.weight[block].clone()
            weight[: start - block.start] = 0
            weight[weight.shape[0] - (block.stop - stop) :] = 0
            yield block, weight

    def _level(self, i: int) -> tuple[Tensor, Tensor | None]:
        """The mean gradient of an image and, where one asks, its derivative by the image."""
        total = self.whole.new_zeros((), dtype=torch.float64)
        count = torch.zeros_like(total)
        slope = None if self.outputs[i] is None else torch.zeros_like(self.images[i])
        for block, weight in self._slabs():
            parts = _differences(self.images[i][block])
            size = _dot(parts, parts).sqrt_()
            weight = weight * (size > 0)
            total += torch.sum(size * weight)
            count += torch.sum(weight)
            if slope is not None:
                # Where it is flat the weight is 0.
                weight.div_(size.clamp_min_(torch.finfo(size.dtype).tiny))
                _add_adjoint(slope[block], [part.mul_(weight) for part in parts])
        share = _inverse(count)
        return (total * share).to(self.whole.dtype), None if slope is None else slope.mul_(share.to(slope.dtype))

    def _compare(self, block: slice, weight: Tensor, levels: Sequence[Tensor], by_level: list[Tensor]) -> Tensor:
        """Sum of the weighted ngf of a slab; adds its gradients, and to ``by_level`` those by the mean gradients."""
        parts = [_differences(image[block]) for image in self.images]
        squares = []
        for own, level in zip(parts, levels, strict=True):
            # Of a flat image all products are 0, whatever they are divided by.
            eta = torch.where(level > 0, self.edge * level, 1)
            squares.append(_dot(own, own).add_(eta.square()))
        product = _dot(*parts)
        ratio = (product / squares[0]).div_(squares[1]).mul_(weight).mul_(self.whole)
        value = torch.sum(product * ratio)
        for i, output in enumerate(self.outputs):
            if output is None:
                continue
            by_square = (ratio * product).div_(squares[i]).neg_()
            by_level[i] += torch.sum(by_square) * 2 * self.edge * levels[i]
            by_square.mul_(2)
            mixed = [part * by_square for part in parts[i]]
            for k, part in enumerate(parts[1 - i]):
                mixed[k].addcmul_(part, ratio, value=2)
            _add_adjoint(output[block], mixed)
        return value


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total > 0, total.reciprocal(), 0)


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    result = first[0] * second[0]
    for one, other in zip(first[1:], second[1:], strict=True):
        result.addcmul_(one, other)
    return result


def _differences(volume: Tensor) -> list[Tensor]:
    """Along each axis half the difference of the next voxels, at the ends the whole one to the only next voxel."""
    results = []
    for axis in range(volume.ndim):
        result, last = torch.empty_like(volume), volume.shape[axis] - 1
        if last == 0:
            results.append(result.zero_())
            continue
        inner, high, low = (x.narrow(axis, k, last - 1) for x, k in ((result, 1), (volume, 2), (volume, 0)))
        torch.sub(high, low, out=inner).mul_(0.5)
        for place, upper in ((0, 1), (last, last)):
            torch.sub(volume.select(axis, upper), volume.select(axis, upper - 1), out=result.select(axis, place))
        results.append(result)
    return results


def _add_adjoint(gradient: Tensor, fields: Sequence[Tensor]) -> None:
    """Add to ``gradient`` what :func:`_differences` hands back of the derivatives by its results."""
    for axis, field in enumerate(fields):
        last = gradient.shape[axis] - 1
        if last == 0:
            continue
        inner = field.narrow(axis, 1, last - 1)
        gradient.narrow(axis, 2, last - 1).add_(inner, alpha=0.5)
        gradient.narrow(axis, 0, last - 1).add_(inner, alpha=-0.5)
        for place, upper in ((0, 1), (last, last)):
            end = field.select(axis, place)
            gradient.select(axis, upper).add_(end)
            gradient.select(axis, upper - 1).sub_(end)


def _least_around(weight: Tensor) -> Tensor:
    """The least weight of each voxel and the next ones along the axes, (B, 1, *spatial)."""
    least = weight.clone()
    for axis in range(2, weight.ndim):
        last = weight.shape[axis] - 1
        for place, other in ((0, 1), (1, 0)):
            part = least.narrow(axis, place, last)
            torch.minimum(part, weight.narrow(axis, other, last), out=part)
    return least

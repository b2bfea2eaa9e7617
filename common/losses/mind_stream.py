# SPDX-License-Identifier: Apache-2.0
"""Self-similarity contexts of two volumes, compared slab by slab, with the gradient of the comparison."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from common.losses.shifted_planes import Neighbours, Slabs

# Of the mean of the variance, what it is limited to.
LOW, HIGH = 1e-3, 1e3
# Values of a slab, and voxels whose channels are compared at a time: what is worked on stays in the cache.
_CPU_SLAB, _CPU_PART = 1 << 17, 1 << 14
_ACCELERATOR_SLAB, _ACCELERATOR_PART = 1 << 22, 1 << 22
# Values (a quarter of a gigabyte in float32) up to which channels are kept from the first pass for the second.
_KEPT = 1 << 26


class _Channels(NamedTuple):
    """Of one slab: window sums of both images, (channels, voxels) each, those of weights, and what voxels count."""

    sums: list[Tensor]
    known: Tensor | None
    weight: Tensor | None


class MINDStream:
    """Mean squared difference of the contexts of one pair of volumes, as :class:`common.losses.MINDSSCLoss` has them.

    Contexts are limited by a mean over the volume, which is therefore gone through twice. Of large volumes channels
    exist for one slab at a time.

    Args:
        images: the two volumes (*spatial), of one type.
        weight: (*spatial) of the same type, or None.
        radius: of windows.
        dilation: voxels to a neighbour.
        wanted: which of the two needs a gradient.
    """

    def __init__(
        self, images: list[Tensor], weight: Tensor | None, radius: int, dilation: int, wanted: list[bool]
    ) -> None:
        like, on_cpu = images[0], images[0].is_cpu
        self.slabs = Slabs(tuple(like.shape), radius, _CPU_SLAB if on_cpu else _ACCELERATOR_SLAB)
        self.part = _CPU_PART if on_cpu else _ACCELERATOR_PART
        if weight is not None:
            # Not even a value that is none gets through.
            images = [torch.where(weight > 0, image, 0) for image in images]
        self.sides = [Neighbours(x, self.slabs, dilation, need) for x, need in zip(images, wanted, strict=True)]
        self.weight, self.weights = weight, None if weight is None else Neighbours(weight, self.slabs, dilation)
        steps = self.sides[0].steps
        self.pairs = [(i, j) for i, j in combinations(range(len(steps)), 2) if steps[i][0] != steps[j][0]]
        self.buffers = [like.new_empty(self.slabs.length) for _ in range(5)]
        self.one, self.tiny = like.new_ones(1), torch.finfo(like.dtype).tiny
        self.keep = (2 if weight is None else 3) * len(self.pairs) * like.numel() <= _KEPT

    def run(self) -> tuple[Tensor, list[Tensor | None]]:
        """The value in float64, and the gradient of each image that needs one; 0 where no voxel counts."""
        typical, share, kept = self._first_pass()
        total = torch.zeros_like(share)
        for planes in self.slabs:
            channels = kept.pop(planes.start) if kept else self._channels(planes)
            count = channels.sums[0].shape[1]
            for part in (slice(start, start + self.part) for start in range(0, count, self.part)):
                weight = None if channels.weight is None else channels.weight[part]
                total += self._compare([sums[:, part] for sums in channels.sums], weight, typical, share)
            for side, slopes in zip(self.sides, channels.sums, strict=True):
                if side.gradient is not None:
                    self._back(side, slopes, channels.known, planes)
        gradients = [None if side.gradient is None else side.volume_gradient() for side in self.sides]
        return total * share, gradients

    def _first_pass(self) -> tuple[list[Tensor], Tensor, dict[int, _Channels]]:
        """Mean variance of both images, the share of a voxel's channel in the value, and what is kept of channels."""
        totals, kept = self.buffers[0].new_zeros(3, dtype=torch.float64), {}
        for planes in self.slabs:
            channels = self._channels(planes)
            for k, sums in enumerate(channels.sums):
                variance = sums.mean(0).sub_(sums.amin(0))
                if channels.weight is not None:
                    variance.mul_(channels.weight)
                totals[k] += variance.sum(dtype=torch.float64)
            if channels.weight is None:
                totals[2] += channels.sums[0].shape[1]
            else:
                totals[2] += channels.weight.sum(dtype=torch.float64)
            if self.keep:
                kept[planes.start] = channels
        share = torch.where(totals[2] > 0, 1 / totals[2], 0)
        typical = (totals[:2] * share).to(self.buffers[0].dtype).clamp(min=self.tiny / LOW)
        return list(typical), share / len(self.pairs), kept

    def _channels(self, planes: slice) -> _Channels:
        if self.weights is None or self.weight is None:
            return _Channels([self._sums(side, planes, None) for side in self.sides], None, None)
        self.weights.load(planes)
        known = self._sums(None, planes, None)
        # A voxel counts where each of its channels compares something.
        weight = self.weight[planes].flatten() * (known.amin(0) > 0)
        known.clamp_(min=self.tiny)
        return _Channels([self._sums(side, planes, known) for side in self.sides], known, weight)

    def _sums(self, side: Neighbours | None, planes: slice, known: Tensor | None) -> Tensor:
        """(channels, voxels): sums over windows of squared differences of pairs of neighbours.

        With weights, which have to be loaded, each is weighted by its neighbours', and sums become means by ``known``.
        Without an image the sums are those of the weights.
        """
        slabs, count = self.slabs, planes.stop - planes.start
        length = (count + 2 * slabs.radius) * slabs.plane
        values, windows = self.buffers[0][:length], slabs.sums(self.buffers[:3], length, slabs.strides)
        sums = slabs.valid(windows.result[: count * slabs.plane])
        seen = None if side is None else side.load(planes)
        weights = None if self.weights is None else self.weights.values[:, :length]
        found = values.new_empty(len(self.pairs), sums.numel())
        for row, (i, j) in zip(found, self.pairs, strict=True):
            if seen is None:
                values.fill_(1)
            else:
                torch.sub(seen[i], seen[j], out=values).square_()
            if weights is not None:
                values.mul_(weights[i]).mul_(weights[j])
            windows.run()
            row.view(sums.shape).copy_(sums)
        return found if known is None else found.div_(known)

    def _compare(self, sums: list[Tensor], weight: Tensor | None, typical: list[Tensor], share: Tensor) -> Tensor:
        """Weighted sum of squares of some voxels; what needs a gradient becomes that of the value by the sums."""
        ratios, contexts, variances, free = [], [], [], []
        for part, usual in zip(sums, typical, strict=True):
            part.sub_(part.amin(0))
            if weight is not None:
                part.mul_(weight > 0)
            variance = part.mean(0)
            limited = torch.minimum(torch.maximum(variance, LOW * usual), HIGH * usual)
            ratios.append(part.mul_(limited.reciprocal().neg_()))
            contexts.append(part.exp())
            variances.append(limited)
            free.append(variance == limited)
        difference = contexts[0] - contexts[1]
        weighted = difference if weight is None else difference * weight
        total = torch.dot(weighted.view(-1), difference.view(-1)).double()
        for k, sign in enumerate((1, -1)):
            if self.sides[k].gradient is None:
                continue
            # By the exponents, ...
            slope = contexts[k].mul_(weighted)
            shared = (slope * ratios[k]).mean(0).mul_(free[k])
            # ... by what they are made of, less its smallest channel, ...
            slope.add_(shared)
            # ... and by that. Several smallest ones share alike; comparisons would take longer.
            least = torch.add(self.one, ratios[k], alpha=1e30).clamp_(min=0)
            slope.addcmul_(least, slope.sum(0).div_(least.sum(0)), value=-1)
            # Twice the difference of contexts, and twice that of neighbours, which comes in the end.
            factor = variances[k].reciprocal_().mul_((-4 * sign * share).to(slope.dtype))
            torch.mul(slope, factor, out=ratios[k])
        return total

    def _back(self, side: Neighbours, slopes: Tensor, known: Tensor | None, planes: slice) -> None:
        """From the derivative by sums over windows to that by the volume."""
        slabs, count = self.slabs, planes.stop - planes.start
        length, reach = count * slabs.plane, (count + 2 * slabs.radius) * slabs.plane
        # Zeros behind rows and planes, and before the first, are beyond the slab on either side.
        margin = 2 * slabs.radius * sum(slabs.strides[1:])
        padded = slopes.new_zeros(margin + length)
        inner = slabs.valid(padded[margin:])
        *scratch, reached, difference = (buffer[:reach] for buffer in self.buffers)
        windows = slabs.sums([padded, *scratch], margin + length, slabs.strides[1:])
        sums = windows.result[:length]
        seen, ends = side.load(planes), slopes.new_zeros(len(side.values), reach)
        weights = None if self.weights is None else self.weights.load(planes)
        if known is not None:
            slopes = slopes.div_(known)
        for row, (i, j) in zip(slopes, self.pairs, strict=True):
            inner.copy_(row.view(inner.shape))
            windows.run()
            reached.zero_()
            for shift in range(0, reach - length + 1, slabs.plane):
                reached[shift : shift + length].add_(sums)
            if weights is not None:
                reached.mul_(weights[i]).mul_(weights[j])
            torch.sub(seen[i], seen[j], out=difference)
            ends[i].addcmul_(reached, difference)
            ends[j].addcmul_(reached, difference, value=-1)
        side.add(ends, planes)

# SPDX-License-Identifier: Apache-2.0
"""Volumes seen from their voxels' neighbours, slab by slab, and sums over the windows around them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Slabs:
    """Planes of a volume with what windows reach beyond them, in flat memory: all sums run over contiguous memory.

    Args:
        size: of the volume, two or three axes.
        radius: of windows in voxels; beyond the volume they see its border again.
        budget: values of a slab.
    """

    def __init__(self, size: tuple[int, ...], radius: int, budget: int) -> None:
        self.size, self.radius = size, radius
        self.extended = tuple(n + 2 * radius for n in size[1:])
        self.plane = math.prod(self.extended)
        # What lies beyond a slab is computed for the next one again.
        self.depth = min(size[0], max(budget // self.plane - 2 * radius, 4 * radius, 1))
        self.strides = [math.prod(self.extended[axis:]) for axis in range(len(size))]
        self.length = (self.depth + 2 * radius) * self.plane

    def __iter__(self) -> Iterator[slice]:
        """The planes of each slab."""
        for start in range(0, self.size[0], self.depth):
            yield slice(start, min(start + self.depth, self.size[0]))

    def valid(self, flat: Tensor) -> Tensor:
        """View (planes, *size[1:]) of the complete windows in flat planes, each at its first voxel."""
        view = flat.view(-1, *self.extended)
        for axis, n in enumerate(self.size[1:], start=1):
            view = view.narrow(axis, 0, n)
        return view

    def sums(self, buffers: list[Tensor], length: int, strides: list[int]) -> WindowSum:
        """Sum over the window that begins at each place, along the axes of these strides.

        Args:
            buffers: flat values in the first, which a fourth one saves from being written over, and two others.
            length: number of values.
            strides: of the axes.
        """
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        at = 0
        for stride in strides:
            at, length = self._along(steps, buffers, at, length, stride)
        return WindowSum(steps, buffers[at])

    def _along(
        self, steps: list[tuple[Tensor, Tensor, Tensor]], buffers: list[Tensor], at: int, length: int, stride: int
    ) -> tuple[int, int]:
        """By sums of 2, 4, 8, ...: three adds for five. Where the sums are, and how many."""
        size = 2 * self.radius + 1
        goal, power, total, width, done = length - (size - 1) * stride, at, at, 1, 1

        def add(first: int, second: int, shift: int, count: int) -> int:
            out = max({*range(len(buffers))} - {power, total})
            steps.append((buffers[first][:count], buffers[second][shift : shift + count], buffers[out][:count]))
            return out

        while done < size:
            length -= width * stride
            power = add(power, power, width * stride, length)
            width *= 2
            if size & width:
                total = add(total, power, done * stride, goal)
                done += width
        return total, goal


class WindowSum(NamedTuple):
    """Sums of buffers that are made as often as wanted, of what is in the first of them at the time.

    Args:
        steps: what is added to what, and where to.
        result: where the last sum is.
    """

    steps: list[tuple[Tensor, Tensor, Tensor]]
    result: Tensor

    def run(self) -> Tensor:
        """The sums, valid until the next."""
        for first, second, out in self.steps:
            torch.add(first, second, out=out)
        return self.result


class Neighbours:
    """A volume shifted by one step along each axis, to both sides.

    Args:
        volume: (*spatial); repeated by its border outside.
        slabs: how it is gone through.
        dilation: voxels of a step.
        gradient: whether gradients of what is seen come back by :meth:`add`.
    """

    def __init__(self, volume: Tensor, slabs: Slabs, dilation: int, gradient: bool = False) -> None:
        self.slabs, self.dilation, self.margin = slabs, dilation, slabs.radius + dilation
        self.padded = F.pad(volume[None, None], [self.margin] * (2 * volume.ndim), mode="replicate")[0, 0]
        self.steps = [(axis, sign * dilation) for axis in range(volume.ndim) for sign in (-1, 1)]
        self.values = volume.new_empty(len(self.steps), slabs.length)
        self.gradient = torch.zeros_like(self.padded) if gradient else None

    def load(self, planes: slice) -> Tensor:
        """(steps, places): values seen from the planes and what windows reach beyond them."""
        for row, step in zip(self.values, self.steps, strict=True):
            for seen, source in self._parts(row, self.padded, planes, *step):
                seen.copy_(source)
        return self.values[:, : self._length(planes)]

    def add(self, gradients: Tensor, planes: slice) -> None:
        """Take derivatives by what :meth:`load` returned."""
        assert self.gradient is not None
        for row, step in zip(gradients, self.steps, strict=True):
            for seen, source in self._parts(row, self.gradient, planes, *step):
                axis = next((k for k in range(seen.ndim) if source.shape[k] != seen.shape[k]), None)
                source.add_(seen if axis is None else seen.sum(axis, keepdim=True))

    def volume_gradient(self) -> Tensor:
        """(*spatial), of all that was added; to be called once."""
        assert self.gradient is not None
        found = self.gradient
        for axis in range(found.ndim):
            inner = found.shape[axis] - 2 * self.margin
            found.narrow(axis, self.margin, 1).add_(found.narrow(axis, 0, self.margin).sum(axis, keepdim=True))
            last = found.narrow(axis, self.margin + inner, self.margin).sum(axis, keepdim=True)
            found.narrow(axis, self.margin + inner - 1, 1).add_(last)
            found = found.narrow(axis, self.margin, inner)
        return found

    def _length(self, planes: slice) -> int:
        return (planes.stop - planes.start + 2 * self.slabs.radius) * self.slabs.plane

    def _parts(
        self, row: Tensor, padded: Tensor, planes: slice, axis: int, step: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of what is seen and of where: first of places inside the volume along ``axis``, then of those beyond.

        A place beyond the volume sees what the border does, not what lies a step from it.
        """
        slabs, radius, size = self.slabs, self.slabs.radius, self.slabs.size[axis]
        seen = row[: self._length(planes)].view(-1, *slabs.extended)
        for k in range(padded.ndim):
            if k != axis:
                start = self.dilation + (planes.start if k == 0 else 0)
                padded = padded.narrow(k, start, seen.shape[k])
        begin = planes.start - radius if axis == 0 else -radius
        end = begin + seen.shape[axis]
        first, last = max(begin, 0), min(end, size)
        source = padded.narrow(axis, first + self.margin + step, last - first)
        yield seen.narrow(axis, first - begin, last - first), source
        if first > begin:
            yield seen.narrow(axis, 0, first - begin), source.narrow(axis, 0, 1)
        if end > last:
            yield seen.narrow(axis, last - begin, end - last), source.narrow(axis, last - first - 1, 1)

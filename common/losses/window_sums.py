# SPDX-License-Identifier: Apache-2.0
"""Sums over the window around each voxel, streamed through volumes slab by slab."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class WindowSums:
    """Window sums of several maps (zeros outside), fed ``depth`` planes at a time along the first spatial axis.

    Fill ``flat`` or ``input``, two views of the same planes, then :meth:`push`.

    Planes lie behind one another in flat memory. Each row is followed by ``radius`` zeros and each plane by ``radius``
    zero rows, so that a neighbour along any axis is one constant shift of the whole buffer: every add runs over
    contiguous memory.

    Args:
        maps: number of maps.
        depth: planes of a slab, at least ``kernel_size - 1``.
        plane: size of a plane, one or two axes.
        kernel_size: odd side of the window in voxels.
        like: gives type and device.
    """

    def __init__(self, maps: int, depth: int, plane: tuple[int, ...], kernel_size: int, like: Tensor) -> None:
        self.kernel_size, self.radius = kernel_size, kernel_size // 2
        self.plane = plane
        padded = tuple(n + self.radius for n in plane)
        self.plane_size = math.prod(padded)
        self.strides = [math.prod(padded[axis + 1 :]) for axis in reversed(range(len(plane)))]
        self.length = maps * depth * self.plane_size
        # So far, on both sides, the sums within the planes look beyond the slab.
        self.margin = self.radius * sum(self.strides)
        self.source = like.new_zeros(self.length + 2 * self.margin)
        self.between = like.new_zeros(self.length + 2 * self.margin)
        # Sums within the planes, of this slab and the last planes before it.
        self.recent = like.new_zeros(maps, (depth + 2 * self.radius) * self.plane_size)
        self.result = like.new_empty(maps, depth * self.plane_size)
        size = max(self.recent.numel(), self.source.numel())
        self.scratch = (like.new_empty(size), like.new_empty(size))
        self.flat = self.source[self.margin : self.margin + self.length].view(maps, -1)
        self.input = self.flat.view(maps, depth, *padded)

    def valid(self, values: Tensor) -> Tensor:
        """View a (maps, depth * plane) buffer, such as ``flat``, as (maps, depth, *plane) without its padding."""
        view = values.view(self.input.shape)
        for axis, size in enumerate(self.plane, start=2):
            view = view.narrow(axis, 0, size)
        return view

    def clear_outside(self, index: int, first: int, last: int) -> None:
        """Zero what map ``index`` of the input has outside planes ``first`` to ``last`` and behind rows and planes."""
        values = self.input[index]
        values[:first] = 0
        values[last:] = 0
        for axis, size in enumerate(self.plane, start=1):
            values.narrow(axis, size, self.radius).zero_()

    def push(self, empty: bool = False) -> Tensor:
        """Take ``input`` (or zeros) as the next planes and return the sums ``radius`` planes behind, valid until then.

        Returns:
            (maps, depth * plane) like ``flat``; what lies in the padding has no meaning.
        """
        known = 2 * self.radius * self.plane_size
        fresh = self.recent[:, known:]
        if empty:
            fresh.zero_()
        else:
            source, last = self.source, self.strides[-1]
            for stride in self.strides[:-1]:
                self._sum(self._around(source, stride), stride, self._around(self.between, 0))
                source = self.between
            self._sum(self._around(source, last), last, fresh)
        self._sum(self.recent, self.plane_size, self.result)
        self.recent[:, :known] = self.recent[:, self.recent.shape[1] - known :]
        return self.result

    def _around(self, buffer: Tensor, stride: int) -> Tensor:
        """All maps of a buffer in one row (1, length), and ``radius`` neighbours on both sides."""
        reach = self.radius * stride
        return buffer[None, self.margin - reach : self.margin + self.length + reach]

    def _sum(self, x: Tensor, stride: int, out: Tensor) -> None:
        """``out[i] = sum of x[i + k * stride]``, k < kernel_size, by sums of 2, 4, 8, ... (four adds for nine)."""
        rows, length = x.shape[0], x.shape[1] - (self.kernel_size - 1) * stride
        if self.kernel_size == 1:
            out.copy_(x.view_as(out))
            return
        power, width, done, started = x, 1, 1, False
        while done < self.kernel_size:
            size = power.shape[1] - width * stride
            doubled = self.scratch[width.bit_length() % 2][: rows * size].view(rows, size)
            power = torch.add(power[:, :size], power[:, width * stride :], out=doubled)
            width *= 2
            if self.kernel_size & width:
                part = power[:, done * stride : done * stride + length].reshape(out.shape)
                torch.add(out if started else x[:, :length].reshape(out.shape), part, out=out)
                done, started = done + width, True

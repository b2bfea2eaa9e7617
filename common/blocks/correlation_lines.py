# SPDX-License-Identifier: Apache-2.0
"""Two feature volumes as lines of numbers, in which the neighbours of all voxels are one slice for each offset."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PaddingMode = Literal["zeros", "border"]
# What torch calls them.
PADDING = {"zeros": "constant", "border": "replicate"}
# Numbers of a piece of which the passes over it find everything in the second-level cache of a core; accelerators want
# few launches.
_CPU_PIECE = 2**18
_ACCELERATOR_PIECE = 2**28


def computing_type(*inputs: Tensor) -> torch.dtype:
    """Float32, or the finest type of the inputs."""
    dtype = torch.float32
    for x in inputs:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def continued(x: Tensor, radii: Sequence[int], padding_mode: PaddingMode) -> Tensor:
    """(B, C, *spatial) with so many voxels more at both sides of each axis."""
    return F.pad(x, [r for r in reversed(radii) for _ in range(2)], mode=PADDING[padding_mode])


class _Piece(NamedTuple):
    """Some planes of a volume, or some rows of one plane.

    Attributes:
        planes: which of the volume.
        rows: which of these.
        line: the same in flat memory, with what lies between.
    """

    planes: slice
    rows: slice
    line: slice


class Lines:
    """One sample of both images as lines (C, length), rows and planes of both as long as those of the continued one.

    Voxel p of the reference meets p, p + 1, p + 2, p + row, ... of the searched image. Behind the rows and planes of
    the reference there are zeros: what is computed there is not looked at, and has no gradient. An image of two axes is
    one plane of three.

    Args:
        reference: (C, *spatial).
        searched: the same shape.
        radius: see :func:`common.blocks.correlation.local_correlation`.
        padding_mode: see there.
    """

    def __init__(self, reference: Tensor, searched: Tensor, radius: int, padding_mode: PaddingMode) -> None:
        self.radii = [radius] * (reference.ndim - 1)
        if reference.ndim == 3:
            self.radii.insert(0, 0)
            reference, searched = reference[:, None], searched[:, None]
        self.padding_mode, self.size, self.factor = padding_mode, reference.shape[1:], len(reference) ** -0.5
        dtype = computing_type(reference, searched)
        around = continued(searched[None].to(dtype), self.radii, padding_mode)[0]
        self.around, self.window = around.shape[1:], [2 * r + 1 for r in self.radii]
        self.strides = self.around[1] * self.around[2], self.around[2], 1
        shifts = itertools.product(*map(range, self.window))
        self.shifts = [sum(map(operator.mul, shift, self.strides)) for shift in shifts]
        self.searched = F.pad(around.flatten(1), [0, self.shifts[-1] % self.strides[0]])
        behind = [0, 2 * self.radii[2], 0, 2 * self.radii[1]]
        self.reference = F.pad(reference.to(dtype), behind).flatten(1).mul_(self.factor)

    def correlate(self, out: Tensor) -> None:
        """Fill the result (K, *spatial)."""
        for piece in self._pieces(len(self.shifts)):
            products = self.reference.new_zeros((*self.window, piece.line.stop - piece.line.start))
            strides = (*self.strides, 1)
            for a, b in zip(self.reference[:, piece.line], self.searched[:, piece.line.start :], strict=True):
                # All neighbours at once: a view, in which every number occurs up to K times.
                products.addcmul_(a, b.as_strided(products.shape, strides))
            self._box(out, piece).copy_(self._inside(products.flatten(0, 2), piece))

    def backward(self, grad: Tensor, on_reference: Tensor, on_searched: Tensor) -> None:
        """Fill the gradients (C, *spatial)."""
        at_searched = torch.zeros_like(self.searched)
        for piece in self._pieces(2 * len(self.reference)):
            reference = self.reference[:, piece.line]
            incoming = reference.new_zeros((len(self.shifts), reference.shape[1]))
            self._inside(incoming, piece).copy_(self._box(grad, piece))
            at_reference = torch.zeros_like(reference)
            for g, shift in zip(incoming, self.shifts, strict=True):
                shifted = slice(piece.line.start + shift, piece.line.stop + shift)
                at_reference.addcmul_(g, self.searched[:, shifted])
                at_searched[:, shifted].addcmul_(g, reference)
            self._box(on_reference, piece).copy_(self._inside(at_reference.mul_(self.factor), piece))
        on_searched.copy_(self._folded(at_searched).view(on_searched.shape))

    def _pieces(self, channels: int) -> Iterator[_Piece]:
        """All of the volume, ``channels`` times which are looked at again and again."""
        limit = (_CPU_PIECE if self.reference.device.type == "cpu" else _ACCELERATOR_PIECE) // channels
        (depth, height, _), (plane, row, _) = self.size, self.strides
        if limit >= plane:
            count = limit // plane
            for start in range(0, depth, count):
                stop = min(start + count, depth)
                yield _Piece(slice(start, stop), slice(0, height), slice(start * plane, stop * plane))
        else:
            count = max(limit // row, 1)
            for z, start in itertools.product(range(depth), range(0, height, count)):
                stop = min(start + count, height)
                line = slice(z * plane + start * row, z * plane + stop * row)
                yield _Piece(slice(z, z + 1), slice(start, stop), line)

    def _box(self, x: Tensor, piece: _Piece) -> Tensor:
        """The piece of (channels, *spatial)."""
        return x.view(len(x), *self.size)[:, piece.planes, piece.rows]

    def _inside(self, flat: Tensor, piece: _Piece) -> Tensor:
        """The same of (channels, length of the piece)."""
        planes, rows = piece.planes.stop - piece.planes.start, piece.rows.stop - piece.rows.start
        return flat.view(len(flat), planes, -1, self.strides[1])[:, :, :rows, : self.size[2]]

    def _folded(self, flat: Tensor) -> Tensor:
        """What the continuation's gradient (C, length) makes of it at the voxels (C, *size)."""
        x = flat[:, : math.prod(self.around)].view(len(flat), *self.around)
        for axis, (radius, n) in enumerate(zip(self.radii, self.size, strict=True), start=1):
            inner = x.narrow(axis, radius, n)
            if self.padding_mode == "border":
                inner.narrow(axis, 0, 1).add_(x.narrow(axis, 0, radius).sum(axis, keepdim=True))
                inner.narrow(axis, n - 1, 1).add_(x.narrow(axis, radius + n, radius).sum(axis, keepdim=True))
            x = inner
        return x

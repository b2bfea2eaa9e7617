# SPDX-License-Identifier: Apache-2.0
"""Attention that looks for each voxel of the fixed image among its neighbours in the moving one.

Source: Liu et al., "Vector Field Attention for Deformable Image Registration" (J. Med. Imaging 11(6), 2024). Keys are
never unfolded: with its rows and planes behind one another a volume is one line of numbers, and a neighbour is the same
line from another place on.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.autograd import first_order
from common.blocks.convolution import convolve
from common.blocks.remade import Remade, not_stored
from common.checks import InputError
from common.tracing import is_traced, without_autocast

# Voxels at a time: their logits stay in the second-level cache of a core; accelerators want few launches.
_CPU_PIECE = 2**13
_ACCELERATOR_PIECE = 2**22


class VectorFieldAttention(nn.Module):
    """Displacement of at most one voxel, found by comparing projected features of both images.

    One convolution projects both. The moving features are continued by their border before it, which is padded with
    zeros once more, as in the published code.

    Args:
        spatial_dims: 2 or 3.
        in_channels: of the features.
        channels: of the projection.
        cosine: whether features are brought to length 1 before they are compared.
        temperature: see :func:`expected_offset`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: int,
        *,
        cosine: bool = False,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        kind: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        self.project = kind(in_channels, channels, 3, padding=1)
        self.cosine, self.temperature = cosine, temperature

    def forward(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Compare features.

        Args:
            fixed: (B, C, *spatial).
            moving: the same shape, warped by what is known.

        Returns:
            (B, d, *spatial), see :func:`expected_offset`.
        """
        weight, bias = self.project.weight, self.project.bias
        assert bias is not None
        query = convolve(fixed, weight, bias)
        around = _continued(moving)
        kept = moving.detach()
        with not_stored(Remade(around, lambda: _continued(kept))):
            key = convolve(around, weight, bias)
            if self.cosine:
                query, key = F.normalize(query), F.normalize(key)
            return expected_offset(query, key, self.temperature)


def _continued(x: Tensor) -> Tensor:
    return F.pad(x, [1] * 2 * (x.ndim - 2), mode="replicate")


def expected_offset(query: Tensor, key: Tensor, temperature: float | None = None) -> Tensor:
    r"""Mean of the unit offsets :math:`o \in \{-1, 0, 1\}^d`, weighted by how well the key at :math:`p + o` fits.

    .. math::
        r(p) = \sum_o \mathrm{softmax}_o\big(q(p) \cdot k(p + o) / T\big)\, o

    In float32 (float64 for float64) whatever autocast says. Only query and key are kept for the backward pass, which
    makes the weights again; it can be differentiated once.

    Args:
        query: (B, C, *spatial), two or three spatial axes.
        key: (B, C, *(spatial + 2)): one voxel more at every side.
        temperature: T; by default the square root of C.

    Returns:
        (B, d, *spatial) in voxels, channel k along axis k, each component in [-1, 1].

    Raises:
        InputError: when the shapes do not fit, or the temperature is not positive.
    """
    if query.ndim not in (4, 5) or key.shape != (*query.shape[:2], *(n + 2 for n in query.shape[2:])):
        raise InputError(
            f"query has shape {tuple(query.shape)} and key {tuple(key.shape)}; expected (B, C, *spatial) with two or "
            "three spatial axes, and a key with one voxel more at every side."
        )
    temperature = math.sqrt(query.shape[1]) if temperature is None else temperature
    if not temperature > 0:
        raise InputError(f"temperature is {temperature}; choose a positive number.")
    with without_autocast(query):
        if is_traced():
            return _traceable(query, key, temperature)
        result: Tensor = _Attention.apply(query, key, 1 / temperature)
        return result


def _traceable(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    query, key = query.to(_computing(query)), key.to(_computing(key))
    dims = query.ndim - 2
    logits = []
    for offset in itertools.product(range(3), repeat=dims):
        shifted = key
        for axis, start in enumerate(offset, start=2):
            shifted = shifted.narrow(axis, start, query.shape[axis])
        logits.append((query * shifted).sum(1))
    weights = torch.stack(logits, dim=1).div(temperature).softmax(1)
    return torch.einsum("bo...,od->bd...", weights, unit_offsets(dims, weights))


def _computing(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def unit_offsets(dims: int, like: Tensor) -> Tensor:
    """The offsets of a voxel's neighbours and its own, (3 ** d, d), the first axis slowest, in the type of ``like``."""
    axis = torch.arange(-1, 2, dtype=like.dtype, device=like.device)
    return torch.stack(torch.meshgrid(*[axis] * dims, indexing="ij"), dim=-1).flatten(0, -2)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(query, key)
        ctx.factor = factor
        out = query.new_empty((query.shape[0], query.ndim - 2, *query.shape[2:]), dtype=_computing(query))
        for b in range(query.shape[0]):
            for slab in _slabs(query[b], key[b], factor):
                slab.attend(out[b])
        return out

    @staticmethod
    @first_order("Vector field attention", "torch's softmax over unfolded keys")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key = ctx.saved_tensors
        on_query, on_key = torch.empty_like(query), torch.zeros_like(key, dtype=_computing(key))
        for b in range(query.shape[0]):
            for slab in _slabs(query[b], key[b], ctx.factor):
                slab.backward(grad[b], on_query[b], on_key[b])
        return on_query, on_key.to(key.dtype), None


def _slabs(query: Tensor, key: Tensor, factor: float) -> Iterator[_Slab]:
    """Planes of one sample: several, if they are small."""
    piece = _CPU_PIECE if query.device.type == "cpu" else _ACCELERATOR_PIECE
    depth = max(2 * piece // math.prod(key.shape[2:]), 1)
    for start in range(0, query.shape[1], depth):
        yield _Slab(query, key, start, min(depth, query.shape[1] - start), piece, factor)


class _Slab:
    """Some planes of query and key, channels first, rows and planes of both as long as those of the key.

    Query voxel p meets the keys p, p + 1, p + 2, p + row, ... of the flat memory. Behind the rows and planes of the
    query there are zeros: what is computed there is not looked at, and has no gradient.
    """

    def __init__(self, query: Tensor, key: Tensor, start: int, depth: int, piece: int, factor: float) -> None:
        self.planes, self.planes_around = slice(start, start + depth), slice(start, start + depth + 2)
        self.depth, self.piece, self.factor = depth, piece, factor
        self.inner, self.outer = query.shape[2:], key.shape[2:]
        dims, channels, dtype = query.ndim - 1, query.shape[0], _computing(query)
        self.strides = [math.prod(self.outer[axis:]) for axis in range(dims)]
        self.shifts = [sum(map(operator.mul, o, self.strides)) for o in itertools.product(range(3), repeat=dims)]
        self.length = depth * self.strides[0]
        self.query = query.new_zeros((channels, self.length), dtype=dtype)
        self._inside(self.query).copy_(query[:, self.planes]).mul_(factor)
        self.key = key.new_zeros((channels, self.length + self.shifts[-1]), dtype=dtype)
        self._around(self.key).copy_(key[:, self.planes_around])
        self.offsets = unit_offsets(dims, self.query)

    def attend(self, out: Tensor) -> None:
        """Fill the planes of the result (d, *spatial)."""
        offset = self.query.new_empty((self.offsets.shape[1], self.length))
        for part in self._pieces():
            torch.mm(self.offsets.T, self._weights(part), out=offset[:, part])
        out[:, self.planes] = self._inside(offset)

    def backward(self, grad: Tensor, on_query: Tensor, on_key: Tensor) -> None:
        """Fill the planes of the gradient at the query, and add to those of the gradient at the key."""
        incoming = self.query.new_zeros((self.offsets.shape[1], self.length))
        self._inside(incoming).copy_(grad[:, self.planes])
        at_query, at_key = torch.zeros_like(self.query), torch.zeros_like(self.key)
        for part in self._pieces():
            weights = self._weights(part)
            # Derivative of the softmax: each weight times what its offset gains over the mean offset.
            gains = self.offsets @ incoming[:, part]
            gains -= (weights * gains).sum(0)
            weights *= gains
            for weight, shift in zip(weights, self.shifts, strict=True):
                shifted = slice(part.start + shift, part.stop + shift)
                at_query[:, part].addcmul_(weight, self.key[:, shifted])
                at_key[:, shifted].addcmul_(weight, self.query[:, part])
        on_query[:, self.planes] = self._inside(at_query.mul_(self.factor))
        on_key[:, self.planes_around] += self._around(at_key)

    def _pieces(self) -> Iterator[slice]:
        for start in range(0, self.length, self.piece):
            yield slice(start, min(start + self.piece, self.length))

    def _weights(self, part: slice) -> Tensor:
        """(3 ** d, voxels) of a piece, of sum 1."""
        dims, count = len(self.strides), part.stop - part.start
        size, strides = (*[3] * dims, count), (*self.strides, 1)
        logits = self.query.new_zeros(size)
        for query, key in zip(self.query[:, part], self.key[:, part.start :], strict=True):
            # All neighbours at once: a view, in which every number occurs up to 3 ** d times.
            logits.addcmul_(query, key.as_strided(size, strides))
        logits = logits.flatten(0, -2)
        logits.sub_(logits.amax(0)).exp_()
        return logits.div_(logits.sum(0))

    def _inside(self, flat: Tensor) -> Tensor:
        """The voxels of the query in (channels, length), as (channels, depth, ...)."""
        view = flat.view(flat.shape[0], self.depth, *self.outer)
        for axis, n in enumerate(self.inner, start=2):
            view = view.narrow(axis, 0, n)
        return view

    def _around(self, flat: Tensor) -> Tensor:
        """The planes of the key in (channels, length + reach), as (channels, depth + 2, ...)."""
        count = (self.depth + 2) * self.strides[0]
        return flat[:, :count].view(flat.shape[0], self.depth + 2, *self.outer)

# SPDX-License-Identifier: Apache-2.0
"""Local correlation: how well the features of each voxel fit those of its neighbours in another image.

Source: the correlation layer of Dosovitskiy et al., "FlowNet" (ICCV 2015), scaled as in the dual-pyramid networks of
Liu et al., "Unsupervised deformable image registration revisited" (MIDL 2025). Nothing is unfolded: with its rows and
planes behind one another a volume is one line of numbers, and a neighbour is the same line from another place on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from common.autograd import first_order
from common.blocks.correlation_lines import PADDING, Lines, PaddingMode, computing_type, continued
from common.checks import InputError
from common.tracing import is_traced, without_autocast

Box = tuple[slice | int, ...]


def local_correlation(
    reference: Tensor, searched: Tensor, radius: int = 1, padding_mode: PaddingMode = "zeros"
) -> Tensor:
    r"""Products of features with those of all neighbours at most ``radius`` voxels away along each axis.

    .. math::
        r_k(p) = \frac{1}{\sqrt C} \sum_c a_c(p)\, b_c(p + o_k)

    In float32 (float64 for float64) whatever autocast says. Only the inputs are kept for the backward pass; it can be
    differentiated once.

    Args:
        reference: a, (B, C, *spatial), two or three spatial axes.
        searched: b, the same shape: its neighbourhoods are looked through.
        radius: r, at least 1.
        padding_mode: what ``searched`` is outside, "zeros" or the nearest voxel of its "border".

    Returns:
        (B, (2r + 1) ** d, *spatial), offsets in lexicographic order from -r to r, that along the first axis slowest.

    Raises:
        InputError: when the shapes differ or have another number of axes, when the radius is no whole number from 1, or
            the padding mode another one.
    """
    _check_window(radius, padding_mode)
    if reference.ndim not in (4, 5) or reference.shape != searched.shape:
        raise InputError(
            f"Features have shapes {tuple(reference.shape)} and {tuple(searched.shape)}; expected (B, C, *spatial) "
            "twice, with two or three spatial axes."
        )
    with without_autocast(reference):
        if is_traced():
            return _traceable(reference, searched, radius, padding_mode)
        result: Tensor = _Correlation.apply(reference, searched, radius, padding_mode)
        return result


def reversed_correlation(correlation: Tensor, radius: int = 1, padding_mode: PaddingMode = "zeros") -> Tensor:
    r"""``local_correlation(searched, reference)``, from ``local_correlation(reference, searched)``.

    Both hold the same products: what p makes with p + o is what p + o makes with p. It can be differentiated once.

    Args:
        correlation: (B, (2r + 1) ** d, *spatial), two or three spatial axes.
        radius: r, at least 1.
        padding_mode: that of the correlation.

    Returns:
        The same shape.

    Raises:
        InputError: when the channels are not those of the radius, or arguments are wrong as above.
    """
    _check_window(radius, padding_mode)
    if correlation.ndim not in (4, 5) or correlation.shape[1] != (2 * radius + 1) ** (correlation.ndim - 2):
        raise InputError(
            f"A correlation of radius {radius} has shape {tuple(correlation.shape)}; expected "
            f"(B, {2 * radius + 1} ** d, *spatial) with d = 2 or 3 spatial axes."
        )
    if is_traced():
        if padding_mode == "zeros":
            return _reverse_traceably(correlation, radius)
        return _reverse(correlation, radius, padding_mode)
    result: Tensor = _Reversal.apply(correlation, radius, padding_mode)
    return result


def _check_window(radius: int, padding_mode: str) -> None:
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise InputError(f"The radius of a correlation is {radius!r}; give a whole number from 1.")
    if padding_mode not in PADDING:
        raise InputError(f"padding_mode is {padding_mode!r}; choose zeros or border.")


def _traceable(reference: Tensor, searched: Tensor, radius: int, padding_mode: PaddingMode) -> Tensor:
    dtype = computing_type(reference, searched)
    dims = reference.ndim - 2
    query = reference.to(dtype) * reference.shape[1] ** -0.5
    around = continued(searched.to(dtype), [radius] * dims, padding_mode)
    products = []
    for offset in itertools.product(range(2 * radius + 1), repeat=dims):
        shifted = around
        for axis, start in enumerate(offset, start=2):
            shifted = shifted.narrow(axis, start, query.shape[axis])
        products.append((query * shifted).sum(1))
    return torch.stack(products, dim=1)


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, reference: Tensor, searched: Tensor, radius: int, padding_mode: PaddingMode) -> Tensor:
        ctx.save_for_backward(reference, searched)
        ctx.window = radius, padding_mode
        channels = (2 * radius + 1) ** (reference.ndim - 2)
        size = (reference.shape[0], channels, *reference.shape[2:])
        out = reference.new_empty(size, dtype=computing_type(reference, searched))
        for a, b, result in zip(reference, searched, out, strict=True):
            Lines(a, b, radius, padding_mode).correlate(result)
        return out

    @staticmethod
    @first_order("Local correlation", "a sum of products for each offset")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        reference, searched = ctx.saved_tensors
        on_reference, on_searched = torch.empty_like(reference), torch.empty_like(searched)
        for a, b, g, on_a, on_b in zip(reference, searched, grad, on_reference, on_searched, strict=True):
            Lines(a, b, *ctx.window).backward(g, on_a, on_b)
        return on_reference, on_searched, None, None


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, correlation: Tensor, radius: int, padding_mode: PaddingMode) -> Tensor:
        ctx.window = radius, padding_mode
        return _reverse(correlation, radius, padding_mode)

    @staticmethod
    @first_order("The reversal of a correlation", "the correlation of the exchanged images")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.window[1] == "zeros":
            # Places change in pairs: backwards they change in the same way.
            return _reverse(grad, *ctx.window), None, None
        on_correlation = torch.zeros_like(grad)
        for to, come_from in _pairs(grad, *ctx.window):
            on_correlation[come_from] += grad[to]
        return on_correlation, None, None


def _reverse(correlation: Tensor, radius: int, padding_mode: PaddingMode) -> Tensor:
    out = torch.zeros_like(correlation)
    for to, come_from in _pairs(correlation, radius, padding_mode):
        out[to] = correlation[come_from]
    return out


def _reverse_traceably(correlation: Tensor, radius: int) -> Tensor:
    """The reversal where there are zeros outside, without writing into slices, which ONNX does not do at any size."""
    dims, width = correlation.ndim - 2, 2 * radius + 1
    around = continued(correlation, [radius] * dims, "zeros")
    products = []
    for k, offset in enumerate(itertools.product(range(width), repeat=dims), start=1):
        shifted = around[:, width**dims - k]
        for axis, start in enumerate(offset, start=1):
            shifted = shifted.narrow(axis, start, correlation.shape[axis + 1])
        products.append(shifted)
    return torch.stack(products, dim=1)


def _pairs(like: Tensor, radius: int, padding_mode: PaddingMode) -> Iterator[tuple[Box, Box]]:
    """Boxes of a reversed correlation, and where the same products stand in the correlation.

    What p finds at p + o is at q, which is p + o or its nearest voxel inside; q finds p at the offset p - q.
    """
    size, width = like.shape[2:], 2 * radius + 1
    for k, offset in enumerate(itertools.product(range(-radius, radius + 1), repeat=len(size))):
        for sections in itertools.product(*map(_sections, offset, size, itertools.repeat(padding_mode))):
            index = 0
            for section in sections:
                index = width * index + section.back + radius
            there, here = (tuple(section[i] for section in sections) for i in (1, 0))
            yield (slice(None), k, *here), (slice(None), index, *there)


class _Section(NamedTuple):
    """Voxels along an axis.

    Attributes:
        here: slice of p.
        there: slice of q.
        back: p - q.
    """

    here: slice
    there: slice
    back: int


def _sections(offset: int, size: int, padding_mode: PaddingMode) -> Iterator[_Section]:
    count = size - abs(offset)
    if count > 0:
        first = max(-offset, 0)
        yield _Section(slice(first, first + count), slice(first + offset, first + offset + count), -offset)
    if padding_mode == "zeros":
        return
    for steps in range(min(abs(offset), size)):
        # From the border inwards: all these look for the voxel at the border.
        border = size - 1 if offset > 0 else 0
        p = border - steps if offset > 0 else steps
        yield _Section(slice(p, p + 1), slice(border, border + 1), p - border)

# SPDX-License-Identifier: Apache-2.0
"""Convolutions together with the activation before them, which is computed again in the backward pass, not stored.

A convolution needs its input for the gradient of its weights. When that input is an activation, ``relu(x)`` or
``prelu(instance_norm(x))``, it is a few cheap passes away from ``x``; only one of the two has to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from common.autograd import first_order
from common.blocks.normalisation import Statistics, Summands, activate, instance_norm_prelu, measure, write_gradients
from common.processor import has_bfloat16
from common.tracing import is_traced

# Fewer output channels than this leave the vector lanes of a convolution of the gradient empty.
FEW_CHANNELS = 8
# One float32 sample of at most so many values, the last axis aside, torch 2.13 convolves by a form of its own. That
# takes five to fifteen times as long as oneDNN, to which torch hands all others.
FEW_VALUES = 20480
# Voxels at a time when a convolution is a matrix product: what lies under the taps stays in the second-level cache.
PIECE = 2**13
_FIRST_ORDER = first_order("A convolution of common.blocks", "that of torch.nn")


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution of stride 1 that keeps the size, zeros outside.

    Args:
        x: (B, C, *spatial), two or three spatial axes; their type is that of the computation, but for autocast.
        weight: (C', C, *kernel), odd kernel sizes.
        bias: (C',), or None for none.

    Returns:
        (B, C', *spatial) of the type of the computation.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if _plain(x, weight, *([] if bias is None else [bias])):
        return convolved(x, weight, bias)
    result: Tensor = _Convolve.apply(x, weight, bias)
    return result


def rectify_and_convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolve(relu(x), weight, bias)``; overwrites ``x``, which nothing else may need afterwards."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if _plain(x, weight, bias):
        return convolved(F.relu_(x), weight, bias)
    result: Tensor = _RectifyAndConvolve.apply(x, weight, bias)
    return result


def normalise_and_convolve(x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``convolve(instance_norm_prelu([x], slope), weight, bias)``; may overwrite ``x`` if nobody asks for gradients."""
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if _plain(x, slope, weight, bias):
        return convolved(instance_norm_prelu([x], slope, overwrite=True), weight, bias)
    result: Tensor = _NormaliseAndConvolve.apply(x, slope, weight, bias)
    return result


def convolved_again(x: Tensor, image: Tensor, weight: Tensor, bias: Tensor) -> AbstractContextManager[object]:
    """Context in which ``x = convolve(image, weight, bias)`` is not stored for the backward pass but computed again.

    For a convolution that takes little time and makes much of little: the first of a network.
    """
    if is_traced():
        return nullcontext()
    address, shape, dtype = x.data_ptr(), x.shape, x.dtype

    def pack(saved: Tensor) -> Tensor | None:
        return None if saved.data_ptr() == address and saved.shape == shape else saved

    def unpack(packed: Tensor | None) -> Tensor:
        if packed is not None:
            return packed
        with torch.no_grad():
            return convolved(image.to(dtype), weight.to(dtype), bias.to(dtype))

    return saved_tensors_hooks(pack, unpack)


def _plain(*inputs: Tensor) -> bool:
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return not recorded or is_traced()


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`convolve` without autograd, all arguments of one type."""
    if must_widen(x):
        with torch.autocast("cpu", enabled=False):
            return convolved(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    if bias is not None and _folds(x):
        return _convolve_channel(x, weight, bias)
    if bias is not None and _is_product(x, weight):
        product = torch.baddbmm(bias[:, None], weight.flatten(1).expand(len(x), -1, -1), x.flatten(2))
        return product.view(len(x), -1, *x.shape[2:])
    padding = [n // 2 for n in weight.shape[2:]]
    if _is_small(x, weight):
        ones = [1] * len(padding)
        return torch.mkldnn_convolution(x, weight, bias, padding, ones, ones, 1)
    convolution = F.conv2d if x.ndim == 4 else F.conv3d
    return convolution(x, weight, bias, padding=padding)


def convolution_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Gradients of the convolution's input (None unless ``wanted``), weight and bias."""
    on_x: Tensor | None
    axes = list(range(2, x.ndim))
    is_short = x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.ndim == 5 and x.shape[2] < weight.shape[2]
    if is_short or must_widen(x):
        # Where the first axis is shorter than the kernel, torch 2.13 leaves this gradient of the weight uninitialised.
        on_x, on_weight, on_bias = convolution_gradients(grad.float(), x.float(), weight.float(), wanted)
        return None if on_x is None else on_x.to(x.dtype), on_weight.to(weight.dtype), on_bias.to(grad.dtype)
    if not wanted and _folds(x):
        return None, _channel_on_weight(grad, x, weight), grad.sum((0, *axes))
    if _is_product(x, weight):
        rows, columns = grad.flatten(2), x.flatten(2).mT
        # Channels last, as what comes before most likely is.
        on_x = (rows.mT @ weight.flatten(1)).movedim(-1, 1).view_as(x) if wanted else None
        return on_x, (rows @ columns).sum(0).view_as(weight), rows.sum((0, 2))
    is_small = _is_small(x, weight)
    by_convolution = wanted and x.device.type == "cpu" and (is_small or weight.shape[0] >= FEW_CHANNELS)
    on_x, on_weight, _ = torch.ops.aten.convolution_backward(
        *(_halves(grad, x, weight.shape[2]) if is_small else (grad, x)),
        weight,
        None,
        [1] * len(axes),
        [0 if is_small and axis == 0 else n // 2 for axis, n in enumerate(weight.shape[2:])],
        [1] * len(axes),
        False,
        [0] * len(axes),
        1,
        [wanted and not by_convolution, True, False],
    )
    if by_convolution:
        # The CPU's backward convolution runs at up to two thirds of the speed of a forward one of the same size.
        layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
        flipped = weight.flip(axes).transpose(0, 1)
        on_x = convolved(grad, flipped.contiguous(memory_format=layout), None)
    return on_x, on_weight, grad.sum((0, *axes))


def must_widen(x: Tensor) -> bool:
    """Whether torch would rather convolve in float32."""
    # Where the processor has no bfloat16, torch is slow and rounds what every tap adds to the gradient of the input:
    # its error is one and a half to two and a half times the largest that rounding the exact gradient could make.
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not has_bfloat16(x.device)


def _is_small(x: Tensor, weight: Tensor) -> bool:
    """Whether torch would keep a convolution that oneDNN takes."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    if is_traced():
        return False
    kernel = weight.shape[-2:]
    return x.shape[0] == 1 and max(kernel) > 1 and min(kernel) <= 3 and math.prod(x.shape[1:4]) <= FEW_VALUES


def _is_product(x: Tensor, weight: Tensor) -> bool:
    """Whether this is a product of matrices, voxel by voxel to few channels, for which torch would copy the input."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or is_traced():
        return False
    return math.prod(weight.shape[2:]) == 1 and weight.shape[0] < FEW_CHANNELS


def _halves(grad: Tensor, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Output and input of a small convolution in two halves along the first axis, as a batch, which torch hands on.

    The input has the neighbours that a kernel of this size sees: the convolution needs no padding along that axis.
    """
    half, reach, rest = (grad.shape[2] + 1) // 2, size // 2, grad.shape[2] % 2
    others = [0, 0] * (x.ndim - 3)
    x, grad = F.pad(x, [*others, reach, reach + rest]), F.pad(grad, [*others, 0, rest])
    return torch.cat(grad.split(half, 2)), torch.cat([x.narrow(2, start, half + 2 * reach) for start in (0, half)])


def _folds(x: Tensor) -> bool:
    # With one input channel a convolution fills one lane of sixteen; a matrix product over its taps fills them all.
    return x.shape[1] == 1 and x.device.type == "cpu" and not is_traced()


def _taps(volume: Tensor, kernel: Sequence[int]) -> Iterator[tuple[int, int, Tensor]]:
    """Range of voxels of (*spatial) and the values under each tap of the kernel there, (taps, voxels), slab by slab."""
    padded = F.pad(volume[None, None], [n // 2 for n in reversed(kernel) for _ in (0, 1)])[0, 0]
    windows = padded
    for axis, n in enumerate(kernel):
        windows = windows.unfold(axis, n, 1)
    dims, plane = volume.ndim, math.prod(volume.shape[1:])
    windows = windows.permute(*range(dims, 2 * dims), *range(dims))
    depth = max(PIECE // plane, 1)
    for start in range(0, volume.shape[0], depth):
        stop = min(start + depth, volume.shape[0])
        slab = windows.narrow(dims, start, stop - start)
        yield start * plane, stop * plane, slab.reshape(math.prod(kernel), -1)


def _convolve_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    # No view of another tensor, so that what follows may overwrite it.
    out = torch.empty((len(x), len(weight), *x.shape[2:]), dtype=x.dtype, memory_format=layout)
    matrix = weight.reshape(weight.shape[0], -1).T
    for volume, result in zip(x, out.movedim(1, -1), strict=True):
        rows = result.flatten(0, -2)
        for start, stop, taps in _taps(volume[0], weight.shape[2:]):
            torch.addmm(bias, taps.T, matrix, out=rows[start:stop])
    return out


def _channel_on_weight(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    dtype = torch.promote_types(grad.dtype, torch.float32)
    total = torch.zeros((math.prod(weight.shape[2:]), weight.shape[0]), dtype=dtype)
    for volume, sample in zip(x, grad.movedim(1, -1), strict=True):
        rows = sample.flatten(0, -2)
        for start, stop, taps in _taps(volume[0], weight.shape[2:]):
            total += taps @ rows[start:stop]
    return total.T.reshape(weight.shape).to(weight.dtype)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolved(x, weight, bias)

    @staticmethod
    @_FIRST_ORDER
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        on_x, on_weight, on_bias = convolution_gradients(grad, x, weight, ctx.needs_input_grad[0])
        return on_x, on_weight, on_bias if ctx.needs_input_grad[2] else None


class _RectifyAndConvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        rectified = F.relu_(x)
        ctx.save_for_backward(rectified, weight)
        return convolved(rectified, weight, bias)

    @staticmethod
    @_FIRST_ORDER
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        rectified, weight = ctx.saved_tensors
        on_x, on_weight, on_bias = convolution_gradients(grad, rectified, weight, ctx.needs_input_grad[0])
        if on_x is not None:
            torch.ops.aten.threshold_backward.grad_input(on_x, rectified, 0, grad_input=on_x)
        return on_x, on_weight, on_bias


class _NormaliseAndConvolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics = measure([x])
        ctx.save_for_backward(x, slope, *statistics, weight)
        return convolved(activate(Summands((x,)), statistics, slope), weight, bias)

    @staticmethod
    @_FIRST_ORDER
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, slope, scale, shift, weight = ctx.saved_tensors
        summands, statistics = Summands((x,)), Statistics(scale, shift)
        activated = activate(summands, statistics, slope)
        on_activated, on_weight, on_bias = convolution_gradients(grad, activated, weight, True)
        del activated
        assert on_activated is not None
        # The gradient at the convolution's input is overwritten by that of x.
        on_slope = write_gradients(summands, statistics, slope, on_activated, Summands((on_activated,)))
        return on_activated, on_slope, on_weight, on_bias

# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are a function of the draw alone: the same on any device, and after a resume."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BITS = (1 << 32) - 1


def normal_noise(draw: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal numbers of the first item of a batch, for all of it.

    A generator of torch would have to be told the values of ``draw``, for which a GPU is waited for.

    Args:
        draw: (B, 3) integers, seed, epoch and index of each item.
        shape: of the result.

    Returns:
        Float32, on the device of ``draw``.
    """
    count = math.prod(shape)
    half = (count + 1) // 2
    bits = _mixed(torch.arange(2 * half, device=draw.device))
    for number in draw[0].unbind():
        bits = _mixed(bits ^ (number & _BITS))
    # Box and Muller: two numbers of a radius and an angle.
    radius, angle = ((bits.view(2, half) + 0.5) / 2**32).float()
    radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count].view(*shape)


def _mixed(bits: Tensor) -> Tensor:
    """The bits of 32-bit numbers in int64, each turned into a function of all: the last steps of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        # The product may overflow: its low bits are right all the same.
        bits = ((bits ^ (bits >> shift)) * factor) & _BITS
    return bits ^ (bits >> 16)

# SPDX-License-Identifier: Apache-2.0
"""Tensors that the backward pass makes again instead of storing them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from common.tracing import is_traced


class Remade(NamedTuple):
    """A tensor that is cheap to make again of something that is stored anyway.

    Attributes:
        value: the tensor, with its history.
        again: makes the same numbers once more, without history. It holds on to what it makes them of.
    """

    value: Tensor
    again: Callable[[], Tensor]


def made_of(function: Callable[..., Tensor], *inputs: Tensor) -> Remade:
    """What a function makes of tensors that are stored anyway."""
    kept = [x.detach() for x in inputs]
    return Remade(function(*inputs), lambda: function(*kept))


def stored(value: Tensor) -> Remade:
    """A tensor that is kept as it is."""
    kept = value.detach()
    return Remade(value, lambda: kept)


def joined(*parts: Remade) -> Remade:
    """Channels of all, one after the other."""
    # What makes a tensor again must not hold on to one that need not be stored.
    again = [part.again for part in parts]
    return Remade(torch.cat([part.value for part in parts], 1), lambda: torch.cat([make() for make in again], 1))


def not_stored(*tensors: Remade) -> AbstractContextManager[object]:
    """Context whose operations do not store these tensors for the backward pass but have them made again.

    Contexts of this kind do not add up: of nested ones only the innermost counts.
    """
    if is_traced():
        return nullcontext()
    known = {(x.value.data_ptr(), x.value.shape, x.value.dtype): x.again for x in tensors}

    def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
        return known.get((saved.data_ptr(), saved.shape, saved.dtype), saved)

    def unpack(packed: Tensor | Callable[[], Tensor]) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed()

    return saved_tensors_hooks(pack, unpack)

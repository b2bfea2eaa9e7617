# SPDX-License-Identifier: Apache-2.0
"""Backward passes in closed form, which are no functions that autograd could differentiate again."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from common.checks import InputError

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_order(what: str, instead: str) -> Callable[[Backward], Backward]:
    """Let the ``backward`` of an autograd function refuse ``create_graph=True`` with a sentence.

    torch's ``once_differentiable`` is not enough: it refuses where the incoming gradient has a history. The gradient of
    a plain sum has none, and a gradient without history would come out, although it depends on the saved tensors. What
    is then made of it trains nothing.

    Args:
        what: the operation, as the sentence begins.
        instead: what to use, as the sentence ends.

    Returns:
        A decorator. What it decorates runs without gradients and raises :class:`common.checks.InputError` otherwise.
    """

    def decorate(backward: Backward) -> Backward:
        @functools.wraps(backward)
        def checked(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            # The engine switches gradients on in a backward pass if, and only if, its own graph is wanted.
            if torch.is_grad_enabled():
                raise InputError(f"{what} cannot be differentiated twice (create_graph=True): use {instead}.")
            return backward(ctx, *grads)

        return checked

    return decorate

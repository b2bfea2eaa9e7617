# SPDX-License-Identifier: Apache-2.0
"""Losses whose gradient is computed together with their value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from common.autograd import first_order
from common.checks import InputError


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """Float64 if any of the tensors is float64, float32 otherwise (losses never compute in half precision)."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_alike(loss: str, pred: Tensor, target: Tensor) -> None:
    """Refuse images of two shapes.

    Raises:
        InputError: naming the loss and the shapes.
    """
    if pred.shape != target.shape:
        raise InputError(
            f"{loss} got pred of shape {tuple(pred.shape)} and target of shape {tuple(target.shape)}; resample one to "
            "the other's grid."
        )


def needs_gradient(tensor: Tensor) -> bool:
    """Whether a gradient with respect to ``tensor`` can be asked for later."""
    return torch.is_grad_enabled() and tensor.requires_grad


def with_gradient(value: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """Give a computed scalar its gradients: it equals ``value`` and back-propagates ``gradients`` to ``inputs``.

    Args:
        value: scalar without history.
        inputs: tensors that ``value`` was computed from.
        gradients: d value / d input for each of them, or ``None`` where nobody will ask. They are kept until the
            backward pass and cannot be differentiated again.
    """
    wanted = [(tensor, gradient) for tensor, gradient in zip(inputs, gradients, strict=True) if gradient is not None]
    if not wanted:
        return value
    return _KnownGradient.apply(value, *[gradient for _, gradient in wanted], *[tensor for tensor, _ in wanted])


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *gradients_and_inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients_and_inputs[: len(gradients_and_inputs) // 2])
        return value.clone()

    @staticmethod
    @first_order("A loss with a gradient in closed form", "one that is made of torch's own operations, such as MONAI's")
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient * grad_outputs[0] for gradient in ctx.saved_tensors]
        return None, *[None] * len(gradients), *gradients

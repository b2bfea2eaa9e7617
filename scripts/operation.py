# SPDX-License-Identifier: Apache-2.0
"""What ``benchmark.py ops`` compares: forms of one operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Call = Callable[[], object]


@dataclass
class Operation:
    """Two forms of one operation; the first is the one compared with.

    Args:
        forms: what to call, by name.
        volumes: how many one-channel float32 volumes must move: inputs, outputs and saved tensors once each.
        memory: whether the peak memory is of interest.
    """

    forms: dict[str, Call]
    volumes: float
    memory: bool = False


def gradient_of(function: Callable[[Tensor], Tensor | list[Tensor]], tensor: Tensor) -> Call:
    """A call of ``function`` with a backward pass to ``tensor``."""

    def call() -> Tensor | None:
        leaf = tensor.detach().requires_grad_()
        results = function(leaf)
        for result in [results] if isinstance(results, Tensor) else results:
            result.sum().backward(retain_graph=not isinstance(results, Tensor))
        return leaf.grad

    return call

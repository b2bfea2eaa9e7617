# SPDX-License-Identifier: Apache-2.0
"""How far draws of a random field scatter, also where it is random for what a network drops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_SEED = 0
"""Of all draws outside of training: what a network says of a pair is the same each time."""


def standard_deviation(draws: Iterable[Tensor]) -> Tensor:
    """Of each value over the draws, of which no more than one is kept at a time.

    Source: B. Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 4(3),
    1962.

    Args:
        draws: two or more tensors of one shape, floating point.

    Returns:
        The same shape; the root of the sum of squares over the number of draws less one.

    Raises:
        ValueError: for fewer than two draws.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for draw in draws:
        count += 1
        if count == 1:
            mean, squares = draw, torch.zeros_like(draw)
            continue
        step = draw - mean
        mean = mean + step / count
        squares.addcmul_(step, draw - mean)
    if count < 2:
        raise ValueError(f"{count} draw(s) have no standard deviation; give two or more.")
    return squares.div_(count - 1).sqrt_()


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Within it torch draws the same numbers each time; afterwards those that it would have drawn without.

    Args:
        device: where numbers are drawn, beside the CPU.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(_SEED)
        yield


@contextmanager
def dropping(network: nn.Module) -> Iterator[None]:
    """Within it layers of dropout drop, and nothing else is as in training; afterwards all are as they were."""
    before = {module: module.training for module in network.modules()}
    try:
        for module in before:
            module.training = isinstance(module, nn.Dropout | nn.Dropout2d | nn.Dropout3d)
        yield
    finally:
        for module, training in before.items():
            module.training = training

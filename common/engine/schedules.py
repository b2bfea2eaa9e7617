# SPDX-License-Identifier: Apache-2.0
"""Learning rates as functions of the epoch, for ``torch.optim.lr_scheduler.LambdaLR``."""

from __future__ import annotations

from collections.abc import Callable

from common.checks import InputError


def polynomial_decay(
    learning_rate: float, epochs: int, power: float = 0.9, decimals: int = 8
) -> Callable[[int], float]:
    """Factor on the learning rate that falls to zero, (1 - epoch / epochs) ** power.

    Published for EOIR on LUMIR, with the resulting rate rounded to eight decimals (arXiv 2509.00451, repository).

    Args:
        learning_rate: of the first epoch, that of the optimiser.
        epochs: length of the training; from there on the rate is zero.
        power: exponent.
        decimals: the rate (not the factor) is rounded to so many.

    Returns:
        Epoch, counted from 0, to factor in [0, 1].

    Raises:
        InputError: when the learning rate or the number of epochs is not positive.
    """
    if learning_rate <= 0 or epochs < 1:
        raise InputError(f"The learning rate is {learning_rate} and max_epochs {epochs}; both must be positive.")

    def factor(epoch: int) -> float:
        left = max(1 - epoch / epochs, 0.0)
        return round(learning_rate * left**power, decimals) / learning_rate

    return factor

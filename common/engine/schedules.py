# SPDX-License-Identifier: Apache-2.0
"""When learning rates change, and rates as functions of the epoch, for ``torch.optim.lr_scheduler.LambdaLR``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ignite.engine import Engine
from monai.handlers import LrScheduleHandler
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from common.checks import InputError


def schedule_handler(lr_scheduler: Any) -> LrScheduleHandler:
    """What steps a scheduler of torch: once per epoch, but ``CosineAnnealingWarmRestarts`` after each update.

    That one then stands at epoch + k / n, where k of the epoch's n updates came before the last one. So the first two
    updates of a training have the first rate, and an epoch begins with that of its predecessor's second last: the
    recipe of the dual-pyramid networks (H. Liu et al., MIDL 2025 short papers, repository). Of several processes each
    makes the same n updates, so that restarts fall on the same epochs on any number of them.

    Args:
        lr_scheduler: any scheduler of torch.

    Returns:
        A handler to attach before whatever saves the scheduler.
    """
    by_update = isinstance(lr_scheduler, CosineAnnealingWarmRestarts)
    if by_update:
        return LrScheduleHandler(lr_scheduler, print_lr=False, epoch_level=False, step_transform=_epoch_before_update)
    return LrScheduleHandler(lr_scheduler, print_lr=False)


def _epoch_before_update(engine: Engine) -> float:
    """The epochs, counted from 0, that were over before the update that has just been made."""
    epoch, done = divmod(engine.state.iteration - 1, engine.state.epoch_length)
    return epoch + done / engine.state.epoch_length


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

# SPDX-License-Identifier: Apache-2.0
"""The loop: steps of an optimiser on an objective, until there is nothing to be won or values are not finite."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

_logger = logging.getLogger(__name__)
Objective = Callable[[int], Tensor]
"""From the number of a step, 1 in the first one, to a scalar."""
_WINDOW = 10
"""Steps whose mean is compared with that of as many before them."""


def descend(objective: Objective, optimiser: torch.optim.Optimizer, steps: int, tolerance: float = 0.0) -> int:
    """Minimise; the optimiser's parameters are changed in place.

    Where a value is not finite, this goes back to the parameters of the last finite one, ends and says so.

    Args:
        objective: value of a step, with a graph to the parameters.
        optimiser: of these.
        steps: to be made.
        tolerance: ends where the mean of ten steps is below that of the ten before by less than this part of what has
            been won since the first step; 0 never does.

    Returns:
        How many steps were made and kept.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    kept = [parameter.detach().clone() for parameter in parameters]
    values: list[float] = []
    with tqdm(total=steps, desc="optimisation", leave=False, mininterval=1.0) as bar:
        for step in range(steps):
            total = objective(step + 1)
            values.append(total.item())
            if not math.isfinite(values[-1]):
                return _gone_back(kept, parameters, step)
            if _has_settled(values, tolerance):
                return step
            bar.set_postfix_str(f"loss {values[-1]:.4f}", refresh=False)
            _copy(parameters, kept)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            bar.update()
    with torch.no_grad():
        finite = steps == 0 or math.isfinite(objective(steps).item())
    return steps if finite else _gone_back(kept, parameters, steps)


def _has_settled(values: Sequence[float], tolerance: float) -> bool:
    if tolerance == 0 or len(values) < 2 * _WINDOW:
        return False
    late, early = (sum(part) / _WINDOW for part in (values[-_WINDOW:], values[-2 * _WINDOW : -_WINDOW]))
    return early - late < tolerance * (values[0] - late)


def _gone_back(kept: Sequence[Tensor], parameters: Sequence[Tensor], steps: int) -> int:
    """To the last good parameters; returns their number of steps."""
    done = max(steps - 1, 0)
    _copy(kept, parameters)
    _logger.warning("The loss is not finite after %d steps of optimisation, which ends there.", done)
    return done


def _copy(source: Sequence[Tensor], target: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for old, new in zip(target, source, strict=True):
            old.copy_(new)
